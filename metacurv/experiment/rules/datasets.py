"""The data of the tasks, fresh for every seed: generated anew, split anew, or cut from a text at another place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import data as mnist1d_data

_CONTEXT = 64  # characters that the transformer sees
_ALPHABET = 128


@dataclass(frozen=True)
class Part:
    """Inputs [N, ...] and targets [N, ...]."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Splits:
    """The data in three parts: ``train`` is trained on, ``validation`` decides, ``test`` is reported."""

    train: Part
    validation: Part
    test: Part


def mnist1d(seed: int) -> Splits:
    """Makes mnist1d (Greydanus and Kobak 2024) from another seed: 3200, 800 and 1000 examples of 40 numbers, 10 classes."""
    made = mnist1d_data.load(5000, 1000 + seed)
    return Splits(
        train=Part(made.x_train[800:], made.y_train[800:]),
        validation=Part(made.x_train[:800], made.y_train[:800]),
        test=Part(made.x_test, made.y_test),
    )


def friedman(seed: int) -> Splits:
    """Makes Friedman's first regression problem (1991), without noise, 1000 examples each; inputs and targets of variance 1."""
    from sklearn.datasets import make_friedman1  # type: ignore[import-untyped]

    x, y = make_friedman1(n_samples=3000, n_features=10, noise=0.0, random_state=seed)
    return _in_order(_standardised(x), _standardised(y)[:, None], 1000, 2000)


def diabetes(seed: int) -> Splits:
    """Loads 442 patients (Efron et al. 2004), split at random 60 : 20 : 20; few and noisy, so that long training overfits."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return _shuffled(_standardised(x), _standardised(y)[:, None], seed)


def digits(seed: int) -> Splits:
    """Loads 1797 images of 8 x 8 (UCI), split at random 60 : 20 : 20."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return _shuffled(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y), seed)


def python_topics(seed: int) -> Splits:
    """The help texts that Python ships (``pydoc_data.topics``), by character.

    They are read in a circle, from another place for every seed.

    Inputs are windows of 64 characters, targets the characters after each.
    """
    from pydoc_data import topics

    text = "".join(text for _, text in sorted(topics.topics.items()))
    codes = torch.tensor(list(text.encode("ascii", "replace")), dtype=torch.int64) % _ALPHABET
    codes = codes.roll(int(np.random.default_rng(seed).integers(len(codes))))
    first, second = int(0.8 * len(codes)), int(0.9 * len(codes))
    return Splits(
        train=_windows(codes[:first], every=16),
        validation=_windows(codes[first:second], every=_CONTEXT),
        test=_windows(codes[second:], every=_CONTEXT),
    )


def _windows(codes: Tensor, *, every: int) -> Part:
    windows = codes.unfold(0, _CONTEXT + 1, every)
    if every == _CONTEXT:
        windows = windows[:400]  # enough to tell methods apart, and quick
    return Part(windows[:, :-1].contiguous(), windows[:, 1:].contiguous())


def _standardised(values: Any) -> Tensor:
    centred = values - values.mean(0)
    return torch.tensor(centred / centred.std(0), dtype=torch.float32)


def _shuffled(x: Tensor, y: Tensor, seed: int) -> Splits:
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    return _in_order(x[order], y[order], int(0.6 * len(x)), int(0.8 * len(x)))


def _in_order(x: Tensor, y: Tensor, first: int, second: int) -> Splits:
    return Splits(
        Part(x[:first], y[:first]),
        Part(x[first:second], y[first:second]),
        Part(x[second:], y[second:]),
    )

"""The data of the tasks, fresh for every seed: generated anew, split anew, or cut from a text at another place."""

from __future__ import annotations

import torch

from metacurv.experiment import data as mnist1d_data

from .part import Part, Splits, in_order, shuffled, standardised
from .text import characters

_CONTEXT = 64  # characters that the transformer sees


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
    return in_order(standardised(x), standardised(y)[:, None], 1000, 2000)


def diabetes(seed: int) -> Splits:
    """Loads 442 patients (Efron et al. 2004), split at random 60 : 20 : 20; few and noisy, so that long training overfits."""
    from sklearn.datasets import load_diabetes

    x, y = load_diabetes(return_X_y=True)
    return shuffled(standardised(x), standardised(y)[:, None], seed)


def breast_cancer(seed: int) -> Splits:
    """Loads 569 patients with 30 measurements each and two outcomes (Street et al. 1993), split at random 60 : 20 : 20."""
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    return shuffled(standardised(x), torch.tensor(y), seed)


def digits(seed: int) -> Splits:
    """Loads 1797 images of 8 x 8 (UCI), split at random 60 : 20 : 20."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    return shuffled(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y), seed)


def python_topics(seed: int) -> Splits:
    """The help texts that Python ships (``pydoc_data.topics``), by character.

    They are read in a circle, from another place for every seed.

    Inputs are windows of 64 characters, targets the characters after each.
    """
    from pydoc_data import topics

    text = "".join(text for _, text in sorted(topics.topics.items()))
    return characters(text, _CONTEXT, seed)

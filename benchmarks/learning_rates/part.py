"""Examples in three parts, and the ways of parting them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor


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


def standardised(values: Any) -> Tensor:
    """Returns columns of mean 0 and variance 1; one that is constant becomes 0. values [N, ...]."""
    centred = values - values.mean(0)
    spread = centred.std(0)
    return torch.tensor(centred / np.where(spread > 0, spread, 1), dtype=torch.float32)


def shuffled(x: Tensor, y: Tensor, seed: int) -> Splits:
    """Splits at random, 60 : 20 : 20."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(x)))
    return in_order(x[order], y[order], int(0.6 * len(x)), int(0.8 * len(x)))


def in_order(x: Tensor, y: Tensor, first: int, second: int) -> Splits:
    """Splits where example ``first`` and example ``second`` are."""
    return Splits(
        Part(x[:first], y[:first]),
        Part(x[first:second], y[first:second]),
        Part(x[second:], y[second:]),
    )

"""Time series as tasks' data, from the files that the package aeon (BSD) carries, training and test parts put together."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor

from .package_files import packaged
from .part import Splits, shuffled, standardised

_MOMENTS = 10


def leaves(seed: int) -> Splits:
    """Outlines of 442 leaves of 6 trees, 427 numbers each (Gandhi 2002; UCR archive, free for research)."""
    return shuffled(*_series("OSULeaf"), seed)


def power_demand(seed: int) -> Splits:
    """Italy's demand for power over 1096 days, 24 hours each, winter or summer (Keogh et al. 2006; UCR archive)."""
    return shuffled(*_series("ItalyPowerDemand"), seed)


def vowels(seed: int) -> Splits:
    """A vowel spoken 640 times by 9 men, 12 numbers at each of 25 moments (Kudo et al. 1999; UCI, CC BY 4.0).

    Only the first 10 moments are taken: with all of them hardly any test example is wrong.
    """
    x, y = _series("JapaneseVowels", "_eq")
    return shuffled(x[:, :, :_MOMENTS], y, seed)


@cache
def _series(name: str, suffix: str = "") -> tuple[Tensor, Tensor]:
    """Returns inputs [N, channels, length], standardised by channel and moment, and classes [N]."""
    series, classes = [], []
    for part in ("TRAIN", "TEST"):
        text = packaged("aeon", f"datasets/data/{name}/{name}{suffix}_{part}.ts").read_text()
        for line in text.split("@data", 1)[1].split():
            *channels, label = line.split(":")
            series.append([list(map(float, channel.split(","))) for channel in channels])
            classes.append(label)
    x = standardised(np.array(series))
    return x, torch.from_numpy(np.unique(classes, return_inverse=True)[1])

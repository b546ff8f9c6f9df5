"""Means, spreads and paired t intervals over seeds."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats  # type: ignore[import-untyped]

CONFIDENCE = 0.95
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (over n - 1; nan for one value) of n values."""

    mean: float
    sd: float
    n: int


@dataclass(frozen=True)
class Interval:
    """A mean difference of n pairs and its 95 % confidence limits (nan where there are none)."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def side(self) -> int:
        """The side of zero that the interval is on: 1 above, -1 below, 0 where zero is inside or there are no limits."""
        if self.low > 0:
            return 1
        return -1 if self.high < 0 else 0


def spread(values: _Array) -> Spread:
    """Returns mean and standard deviation of ``values`` [S], one a seed."""
    n = len(values)
    sd = float(np.std(values, ddof=1)) if n > 1 else math.nan
    return Spread(float(np.mean(values)), sd, n)


def paired_interval(values: _Array, baseline: _Array) -> Interval:
    """Student's t interval for the mean of ``values - baseline``, both [S] and paired by seed.

    Limits are nan for one pair, or where a value is not finite: such data bound nothing.
    """
    differences = values - baseline
    n = len(differences)
    mean = float(np.mean(differences))
    if n < 2 or not np.isfinite(differences).all():
        return Interval(mean, math.nan, math.nan, n)
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, df=n - 1)) * error
    return Interval(mean, mean - half, mean + half, n)

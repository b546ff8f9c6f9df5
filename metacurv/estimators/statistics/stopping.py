"""Draws samples until the standard error is small enough, for parameters, layers and their total at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from metacurv.estimators.problem.batches import Summary
from metacurv.estimators.problem.parameters import Layers
from metacurv.estimators.statistics.moments import RunningMoments

# Maps the first probe and a number of samples to float64 [samples, parts].
Draw = Callable[[int, int], Tensor]

# A standard error from fewer samples is too rough to stop at: its own relative error is 1 / sqrt(2 (n - 1)), here 18 %.
MIN_SAMPLES = 16
_GROWTH = 4


@dataclass(frozen=True)
class Budget:
    """Decides when to stop: after the ``first`` samples without ``rtol``; else once stderr <= rtol |value|, or at ``most``."""

    first: int
    rtol: float | None
    most: int


def sample(draw: Draw, layers: Layers, budget: Budget) -> Summary:
    """Draws samples from probe 0 on until ``budget`` says stop."""
    wanted = budget.first
    if wanted == 1 and budget.rtol is None:  # one sample tells nothing about its own error
        row = layers.row_with_sums(draw(0, 1)[0])
        return Summary(row, [math.nan] * len(row), 1, converged=math.isfinite(row[-1]))
    moments = RunningMoments()
    while True:
        moments.add(layers.with_sums(draw(moments.count, wanted - moments.count)))
        if budget.rtol is None:
            return _summary(moments, converged=True)
        value, error = float(moments.mean[-1]), _total_error(moments)
        is_known = moments.count >= MIN_SAMPLES
        if not math.isfinite(value) or (is_known and error <= budget.rtol * abs(value)):
            return _summary(moments, converged=True)
        if moments.count >= budget.most:
            return _summary(moments, converged=False)
        # The present estimate of the error says how many are needed; growth is bounded, since it may be a poor one.
        needed = moments.count * (error / (budget.rtol * abs(value))) ** 2 if value else math.inf
        step = min(needed, _GROWTH * moments.count, budget.most)
        wanted = max(moments.count + 1, math.ceil(step))


def _total_error(moments: RunningMoments) -> float:
    if moments.count < 2:
        return math.inf
    return math.sqrt(float(moments.m2[-1]) / (moments.count - 1) / moments.count)


def _summary(moments: RunningMoments, *, converged: bool) -> Summary:
    degrees = moments.count - 1 or math.nan
    errors = (moments.m2 / (degrees * moments.count)).sqrt().tolist()
    is_finite = math.isfinite(float(moments.mean[-1]))
    return Summary(moments.mean.tolist(), errors, moments.count, converged and is_finite)

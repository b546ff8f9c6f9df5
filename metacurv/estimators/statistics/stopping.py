"""Draws samples until the standard error is small enough, for parameters, layers and their total at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

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
        count = moments.count
        errors = (moments.m2 / ((count - 1 or math.nan) * count)).sqrt().tolist()
        summary = Summary(moments.mean.tolist(), errors, count, converged=True)
        value, error = summary.mean[-1], summary.stderr[-1]
        if not math.isfinite(value):
            return replace(summary, converged=False)
        if budget.rtol is None:
            return summary
        if count >= MIN_SAMPLES and error <= budget.rtol * abs(value):
            return summary
        if count >= budget.most:
            return replace(summary, converged=False)
        # The present estimate of the error says how many are needed; growth is bounded, since it may be a poor one.
        needed = count * (error / (budget.rtol * abs(value))) ** 2 if value else math.inf
        wanted = max(count + 1, math.ceil(min(needed, _GROWTH * count, budget.most)))

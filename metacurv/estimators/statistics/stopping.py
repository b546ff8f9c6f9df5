"""Draws samples until the standard error is small enough, for parameters, layers and their total at once."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from metacurv.estimators.problem.batches import Summary
from metacurv.estimators.problem.parameters import Layers
from metacurv.estimators.problem.progress import bar
from metacurv.estimators.statistics.moments import RowMoments, samples_to_trust

# Maps the first probe and a number of samples to float64 [samples, rows, parts]; see ``RowMoments``.
Draw = Callable[[int, int], Tensor]

_GROWTH = 4


@dataclass(frozen=True)
class Budget:
    """Decides when to stop: after the ``first`` samples without ``rtol``; else once stderr <= rtol |value|, or at ``most``.

    ``progress``: see ``bar``, which counts the samples.
    """

    first: int
    rtol: float | None
    most: int
    progress: bool | None = False

    def begin(self, examples: int) -> int:
        """Returns how many samples to draw first, where ``examples`` are told apart (1: they are not)."""
        if self.rtol is None:
            return self.first
        return min(self.most, max(self.first, samples_to_trust(examples)))

    def more(self, count: int, value: float, error: float, *, is_trusted: bool) -> int:
        """Returns how many samples there should be after ``count`` of them; ``count`` where they are enough."""
        if self.rtol is None or not math.isfinite(value) or count >= self.most:
            return count
        target = self.rtol * abs(value)
        if error <= target:
            return count if is_trusted else min(2 * count, samples_to_trust(1), self.most)
        # The present estimate of the error says how many are needed; growth is bounded, since it may be a poor one.
        ratio = error / target if target and math.isfinite(error) else math.inf
        needed = count * ratio * ratio  # a power would overflow
        return max(count + 1, math.ceil(min(needed, _GROWTH * count, self.most)))

    def is_met(self, value: float, error: float, *, is_trusted: bool) -> bool:
        """Tells whether a result is what was asked for."""
        if self.rtol is None:
            return math.isfinite(value)
        return is_trusted and error <= self.rtol * abs(value)


def sample(draw: Draw, layers: Layers, budget: Budget, examples: int = 1) -> Summary:
    """Draws samples from probe 0 on until ``budget`` says stop; ``examples``: how many of them the rows tell apart."""
    wanted = budget.begin(examples)
    if wanted == 1:  # one sample tells nothing about its own error
        row = layers.row_with_sums(draw(0, 1)[0].sum(0))
        return Summary(
            row, [math.nan] * len(row), 1, converged=math.isfinite(row[-1]) and budget.rtol is None
        )
    moments, count = RowMoments(), 0
    with bar(budget.progress, "trace", "sample") as shown:
        while True:
            moments.add(layers.with_sums(draw(moments.count, wanted - moments.count)))
            shown.update(wanted - count)
            count = moments.count
            errors = (moments.deviation / math.sqrt(count)).tolist()
            mean, is_trusted = moments.mean.tolist(), moments.is_trusted
            value, error = mean[-1], errors[-1]
            wanted = budget.more(count, value, error, is_trusted=is_trusted)
            if wanted <= count:
                is_met = budget.is_met(value, error, is_trusted=is_trusted)
                return Summary(mean, errors, count, converged=is_met)

"""Draws samples until the standard error is small enough, for parameters, layers and their total at once."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.statistics.moments import RunningMoments

# Maps the first probe and a number of samples to float64 [samples, parts].
Draw = Callable[[int, int], Tensor]

# A standard error from fewer samples is too rough to stop at: its own relative error is 1 / sqrt(2 (n - 1)), here 18 %.
MIN_SAMPLES = 16
_GROWTH = 4


@dataclass(frozen=True)
class Budget:
    """Decides when to stop: after ``n_samples`` without ``rtol``; else once stderr <= rtol |value|, or at ``max_samples``.

    With ``rtol`` at least ``n_samples`` are drawn, or MIN_SAMPLES.
    """

    n_samples: int | None
    rtol: float | None
    max_samples: int

    @property
    def first(self) -> int:
        """The number of samples before the first look at the error."""
        if self.rtol is None:
            return self.n_samples or MIN_SAMPLES
        return min(self.max_samples, max(MIN_SAMPLES, self.n_samples or 0))


@dataclass(frozen=True)
class Summary:
    """Mean and standard error over samples: lists of the parts', then the layers', then the total's."""

    mean: list[float]
    stderr: list[float]
    n_samples: int
    converged: bool


class Groups:
    """Sums of parts that are reported beside them: layers, and the total, which is the last column.

    Args:
        members: for each layer, the indices of its parts.
        parts: the number of parts.
    """

    def __init__(self, members: Sequence[Sequence[int]], parts: int) -> None:
        self._members = members
        self._table = _sums_table(tuple(map(tuple, members)), parts)

    def row_with_sums(self, row: Tensor) -> list[float]:
        """Extends float64 [parts] to a list of parts, layers and total, on the host."""
        parts: list[float] = row.tolist()
        return [*parts, *(sum(parts[i] for i in layer) for layer in self._members), sum(parts)]

    def with_sums(self, samples: Tensor) -> Tensor:
        """Extends float64 [m, parts] to [m, parts + layers + 1], on the host."""
        rows = samples.cpu()
        return torch.cat([rows, rows @ self._table], dim=1)

    @property
    def columns(self) -> int:
        """The number of values that a sample gives."""
        return sum(self._table.shape)


@functools.lru_cache(maxsize=16)
def _sums_table(members: tuple[tuple[int, ...], ...], parts: int) -> Tensor:
    """Returns float64 [parts, layers + 1], of zeros and ones, by which sums are products."""
    columns = [[float(part in layer) for part in range(parts)] for layer in members]
    return torch.tensor([*columns, [1.0] * parts], dtype=torch.float64, device="cpu").t()


def sample(draw: Draw, groups: Groups, budget: Budget) -> Summary:
    """Draws samples from probe 0 on until ``budget`` says stop."""
    wanted = budget.first
    if wanted == 1 and budget.rtol is None:  # one sample tells nothing about its own error
        row = groups.row_with_sums(draw(0, 1)[0])
        return Summary(row, [math.nan] * len(row), 1, converged=math.isfinite(row[-1]))
    moments = RunningMoments()
    while True:
        moments.add(groups.with_sums(draw(moments.count, wanted - moments.count)))
        if budget.rtol is None:
            return _summary(moments, converged=True)
        value, error = float(moments.mean[-1]), _total_error(moments)
        is_known = moments.count >= MIN_SAMPLES
        if not math.isfinite(value) or (is_known and error <= budget.rtol * abs(value)):
            return _summary(moments, converged=True)
        if moments.count >= budget.max_samples:
            return _summary(moments, converged=False)
        # The present estimate of the error says how many are needed; growth is bounded, since it may be a poor one.
        needed = moments.count * (error / (budget.rtol * abs(value))) ** 2 if value else math.inf
        step = min(needed, _GROWTH * moments.count, budget.max_samples)
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

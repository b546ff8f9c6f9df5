"""The traces of several batches as one: of this process, and over all processes that measure together."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable

import torch
from torch import Tensor

from metacurv.estimators.statistics.stopping import Summary
from metacurv.processes.ranks import Ranks

Found = tuple[str, str, Summary]
"""The method that measured a batch, the reason for it, and what it found."""


class BatchSums:
    """Collects the traces of batches, which are weighted by their sizes, or added up; their errors are independent.

    Args:
        columns: the number of values of a batch: parts, layers and the total.
        is_sum: True where the loss is a sum over examples.
    """

    def __init__(self, columns: int, *, is_sum: bool) -> None:
        self.columns = columns
        self._is_sum = is_sum
        self._found: list[tuple[int, Found]] = []
        self._of_all: list[float] | None = None

    @property
    def count(self) -> int:
        """The number of batches of this process."""
        return len(self._found)

    def add(self, size: int, found: Found) -> None:
        """Adds a batch of ``size`` examples."""
        self._found.append((size, found))

    def over(self, ranks: Ranks, measure: Callable[[], None], device: torch.device) -> None:
        """Calls ``measure``, which adds this process's batches, and takes those of all ranks for the result.

        Args:
            ranks: the processes that measure together, which must all call.
            measure: measures here.
            device: the device that the ranks exchange numbers by.
        """

        def numbers() -> Tensor:
            measure()
            return self._numbers().to(device)

        like = torch.empty(2 * self.columns + 4, dtype=torch.float64, device=device)
        self._of_all = (ranks.mean(numbers, like) * ranks.count).tolist()

    def _numbers(self) -> Tensor:
        """Returns numbers of this process that add up over processes, float64 on the CPU."""
        weights = [1 if self._is_sum else size for size, _ in self._found]
        found = [summary for _, (_, _, summary) in self._found]
        by_part = zip(*(summary.mean for summary in found), strict=True)
        means = [sum(map(operator.mul, weights, values)) for values in by_part]
        by_part = zip(*(summary.stderr for summary in found), strict=True)
        squares = [sum((w * e) ** 2 for w, e in zip(weights, es, strict=True)) for es in by_part]
        samples = sum(summary.n_samples for summary in found)
        failed = sum(not summary.converged for summary in found)
        rest = [sum(weights), samples, failed, len(found)]
        return torch.tensor([*means, *squares, *rest], dtype=torch.float64, device="cpu")

    @property
    def combined(self) -> Summary:
        """Mean, standard error, samples of all batches, and whether each of them converged."""
        if self._of_all is not None:
            n = self.columns
            weight, samples, failed, _ = self._of_all[2 * n :]
            by = 1.0 if self._is_sum else weight
            mean = [value / by for value in self._of_all[:n]]
            error = [math.sqrt(square) / by for square in self._of_all[n : 2 * n]]
            return Summary(mean, error, round(samples), converged=not failed)
        summaries = [summary for _, (_, _, summary) in self._found]
        mean, error = summaries[0].mean, summaries[0].stderr
        if len(summaries) > 1:
            total_size = sum(size for size, _ in self._found)
            weights = [1.0 if self._is_sum else size / total_size for size, _ in self._found]
            by_part = zip(*(summary.mean for summary in summaries), strict=True)
            mean = [sum(map(operator.mul, weights, values)) for values in by_part]
            by_part = zip(*(summary.stderr for summary in summaries), strict=True)
            error = [math.hypot(*map(operator.mul, weights, errors)) for errors in by_part]
        n_samples = sum(summary.n_samples for summary in summaries)
        return Summary(mean, error, n_samples, all(summary.converged for summary in summaries))

    @property
    def are_several(self) -> bool:
        """True where there are several batches on all processes together."""
        return (self.count if self._of_all is None else self._of_all[-1]) > 1

    @property
    def method(self) -> str:
        """The methods of this process's batches."""
        return " and ".join(dict.fromkeys(method for _, (method, _, _) in self._found))

    @property
    def why(self) -> str:
        """The reasons for them."""
        return " | ".join(dict.fromkeys(why for _, (_, why, _) in self._found))

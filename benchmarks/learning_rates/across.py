"""The methods over all tasks of a set: mean log ratio to the oracle, with an interval over tasks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metacurv.experiment.statistics import CONFIDENCE, Interval

from . import labels
from .carried_over import carried_over
from .regret import Reading, log_ratios, mean_errors
from .summary import Entry, Records, TaskSummary

_DRAWS = 10_000


@dataclass(frozen=True)
class Row:
    """A method over all tasks.

    Attributes:
        name: the method's label.
        ratios: task -> log of its test error over the oracle's; positive is worse.
        interval: their mean, and a bootstrap interval over tasks.
    """

    name: str
    ratios: Mapping[str, float]
    interval: Interval

    @property
    def worst(self) -> str:
        """The task with the largest ratio."""
        return max(self.ratios, key=self.ratios.__getitem__)


def rows(summaries: Sequence[TaskSummary], records: Mapping[str, Records]) -> list[Row]:
    """Returns a row for every method that ran on all tasks and for the ways to use the grid, the best first.

    A method is read at the iterate that validation prefers, as everywhere.

    Args:
        summaries: the tasks.
        records: task -> method -> seed -> record, of which ``summaries`` were made.
    """
    ratios = {s.task.name: log_ratios(mean_errors(s.task, records[s.task.name])) for s in summaries}
    made = []
    for label, readings in _readings(summaries, ratios).items():
        of = {s.task.name: ratios[s.task.name][r] for s, r in zip(summaries, readings, strict=True)}
        made.append(Row(label, of, bootstrap(list(of.values()))))
    return sorted(made, key=lambda row: row.interval.mean)


def bootstrap(values: Sequence[float]) -> Interval:
    """Returns the mean of one value a task, with the percentile interval of means of tasks drawn with replacement."""
    of = np.asarray(values, dtype=float)
    mean, n = float(of.mean()), len(of)
    if n < 2:
        return Interval(mean, math.nan, math.nan, n)
    drawn = of[np.random.default_rng(0).integers(n, size=(_DRAWS, n))].mean(1)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(mean, float(low), float(high), n)


def behind(row: Row, other: Row) -> Interval:
    """Returns by how much more log error ``row`` has than ``other``, task by task, with an interval over tasks."""
    return bootstrap([row.ratios[task] - other.ratios[task] for task in other.ratios])


def _readings(
    summaries: Sequence[TaskSummary], ratios: Mapping[str, Mapping[Reading, float]]
) -> dict[str, list[Reading]]:
    """Maps label -> what is read on each task, in the order of ``summaries``."""

    def of(entries: Sequence[Entry]) -> list[Reading]:
        return [(entry.name, entry.which) for entry in entries]

    found = {
        labels.ANY_BASE: of([s.adam for s in summaries]),
        f"{labels.BEST_CONSTANT}, tuned on the task": of([s.best_constant for s in summaries]),
        f"{labels.BEST_OF_GRID}, tuned on the task": of([s.best_of_grid for s in summaries]),
    }
    chosen = carried_over(ratios)
    if chosen:
        found[labels.CARRIED_OVER] = [chosen[s.task.name] for s in summaries]
    by_name = [{entry.name: entry for entry in s.methods} for s in summaries]
    for name in by_name[0]:
        if all(name in entries for entries in by_name):
            found[labels.method(name)] = of([entries[name] for entries in by_name])
    return found

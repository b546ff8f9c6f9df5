"""The summary of the runs: each method's test result on every task, paired with the best constant rate and best of the grid.

Everything that is chosen (a point of the grid, the last iterate or the average) is chosen by the mean validation result over
all seeds; the test result is only reported. Differences are signed so that positive is better.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metacurv.experiment.statistics import Interval, paired_interval

from . import labels
from .grid import DEFAULT_RATE, GRID
from .task import Task
from .training import Record

ITERATES = ("last", "average")
GRID_NAMES = {point.name for point in GRID}
Array = NDArray[np.float64]
Records = Mapping[str, Mapping[int, Record]]  # method -> seed -> record


@dataclass(frozen=True)
class Entry:
    """A method on a task, read at one of its iterates.

    Attributes:
        name, which: the method, and "last" or "average".
        validation, test: [S] over ``seeds``.
        diverged: how many runs did.
    """

    name: str
    which: str
    seeds: tuple[int, ...]
    validation: Array
    test: Array
    diverged: int

    @property
    def mean(self) -> float:
        """The mean test result."""
        return float(self.test.mean())

    @property
    def error(self) -> float:
        """The standard error of ``mean``; nan for one seed."""
        n = len(self.test)
        return float(self.test.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


@dataclass(frozen=True)
class TaskSummary:
    """The summary of one task.

    ``best_cosine``: None where no cosine point was among those that went on to all seeds. ``methods``: all but the points of
    the grid, each at its better iterate; ``grid``: the points with runs from all seeds.
    """

    task: Task
    seeds: tuple[int, ...]
    best_constant: Entry
    best_cosine: Entry | None
    best_of_grid: Entry
    adam: Entry
    methods: list[Entry]
    grid: list[Entry]

    def gain(self, entry: Entry, over: Entry) -> Interval:
        """Paired difference in the test result, positive where ``entry`` is better."""
        sign = 1.0 if self.task.higher_is_better else -1.0
        common = sorted(set(entry.seeds) & set(over.seeds))
        return paired_interval(sign * _of(entry, common), sign * _of(over, common))


def summarise(task: Task, records: Records, seeds: Sequence[int]) -> TaskSummary | None:
    """Summarises a task; returns None while its grid is not finished."""
    wanted = tuple(seeds)
    grid = [
        entry
        for point in GRID
        for entry in _entries(point.name, records.get(point.name, {}), wanted)
    ]
    constants = {point.name for point in GRID if point.is_constant}
    constant = [entry for entry in grid if entry.name in constants and entry.which == "last"]
    if len(constant) < len(constants):
        return None
    cosines = {point.name for point in GRID if point.schedule == "cosine"}
    cosine = [entry for entry in grid if entry.name in cosines and entry.which == "last"]
    methods = [
        _better(task, found)
        for name, runs in records.items()
        if name not in GRID_NAMES and (found := _entries(name, runs, wanted))
    ]
    default = next(point.name for point in GRID if point.is_constant and point.rate == DEFAULT_RATE)
    return TaskSummary(
        task=task,
        seeds=wanted,
        best_constant=_better(task, constant),
        best_cosine=_better(task, cosine) if cosine else None,
        best_of_grid=_better(task, grid),
        adam=next(entry for entry in constant if entry.name == default),
        methods=methods,
        grid=grid,
    )


def mean_ranks(summaries: Sequence[TaskSummary]) -> dict[str, float]:
    """Mean rank by test result over the tasks, 1 the best, of methods that ran on all, and of the untuned rate 1e-3."""
    shared = (
        set.intersection(*({entry.name for entry in s.methods} for s in summaries))
        if summaries
        else set()
    )
    ranks: dict[str, list[float]] = {}
    for summary in summaries:
        entries = [e for e in summary.methods if e.name in shared] + [summary.adam]
        sign = -1.0 if summary.task.higher_is_better else 1.0
        values = np.array([sign * entry.mean for entry in entries])
        for entry, value in zip(entries, values, strict=True):
            rank = 1 + (values < value).sum() + ((values == value).sum() - 1) / 2
            ranks.setdefault(entry.name, []).append(float(rank))
    means = {name: float(np.mean(values)) for name, values in ranks.items()}
    return dict(sorted(means.items(), key=lambda pair: pair[1]))


def to_json(summary: TaskSummary) -> dict[str, Any]:
    """Returns plain numbers for a file."""

    def entry(e: Entry) -> dict[str, Any]:
        return {
            "method": e.name,
            "label": label(summary.task, e),
            "iterate": e.which,
            "n": len(e.seeds),
            "test_mean": e.mean,
            "test_standard_error": e.error,
            "validation_mean": float(e.validation.mean()),
            "diverged": e.diverged,
            "gain_over_best_constant": vars(summary.gain(e, summary.best_constant)),
            "gain_over_best_of_grid": vars(summary.gain(e, summary.best_of_grid)),
        }

    return {
        "task": summary.task.name,
        "unit": summary.task.unit,
        "steps": summary.task.steps,
        "seeds": list(summary.seeds),
        "best_constant": entry(summary.best_constant),
        "best_cosine": entry(summary.best_cosine) if summary.best_cosine else None,
        "best_of_grid": entry(summary.best_of_grid),
        "untuned": entry(summary.adam),
        "methods": [entry(e) for e in summary.methods],
    }


def label(task: Task, entry: Entry) -> str:
    """A point of the grid is named with its rate and its iterate, any other method as everywhere."""
    if entry.name in GRID_NAMES:
        return labels.point(task, entry.name, entry.which)
    return labels.method(entry.name)


def _entries(name: str, runs: Mapping[int, Record], seeds: tuple[int, ...]) -> list[Entry]:
    if not set(seeds) <= runs.keys():
        return []
    records = [runs[seed] for seed in seeds]
    return [
        Entry(
            name,
            which,
            seeds,
            np.array([record[f"val_{which}"] for record in records]),
            np.array([record[f"test_{which}"] for record in records]),
            sum(bool(record["diverged"]) for record in records),
        )
        for which in ITERATES
        if all(f"val_{which}" in record for record in records)
    ]


def _better(task: Task, entries: Sequence[Entry]) -> Entry:
    sign = 1.0 if task.higher_is_better else -1.0
    return max(entries, key=lambda entry: sign * float(entry.validation.mean()))


def _of(entry: Entry, seeds: Sequence[int]) -> Array:
    return np.array([entry.test[entry.seeds.index(seed)] for seed in seeds])

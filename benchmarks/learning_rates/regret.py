"""The distance of a method from the best that the grid could have given, on one task: the logarithm of a ratio of errors.

The reference is an oracle: the point of the grid with the smallest mean test error, which nobody could have chosen beforehand.
A mean of such logarithms over tasks of different units is fair to all of them, as a mean of differences is not.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

from .summary import GRID_NAMES, ITERATES, Records
from .task import Task

Reading = tuple[str, str]
"""A method, and the iterate that is read: "last" or "average"."""
_LEAST = 0.1  # per cent: a test without a single error must not make a ratio infinite


def error(task: Task, result: float) -> float:
    """Returns what is wrong of a result: per cent of the answers, or the loss itself."""
    return max(100 - result, _LEAST) if task.measure == "accuracy" else result


def mean_errors(task: Task, records: Records) -> dict[Reading, float]:
    """Returns the mean test error of every method and iterate over the seeds that it has.

    Points of the grid may have few; ``references`` trains those that count from all seeds.
    """
    return {
        (name, which): error(task, statistics.mean(run[f"test_{which}"] for run in runs.values()))
        for name, runs in records.items()
        for which in ITERATES
        if runs and all(run.get(f"test_{which}") is not None for run in runs.values())
    }


def log_ratios(errors: Mapping[Reading, float]) -> dict[Reading, float]:
    """Returns log(error / least error of any point of the grid); nothing without a point of the grid."""
    grid = [value for (name, _), value in errors.items() if name in GRID_NAMES]
    return {reading: math.log(value / min(grid)) for reading, value in errors.items() if grid}

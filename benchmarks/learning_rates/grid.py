"""The grid that a careful user would search: rate x schedule x warm-up, and the last iterate or the average of the iterates.

These are 42 trainings, and 84 settings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from .task import Task

Schedule = Literal["constant", "cosine", "linear"]

RATES = (1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1)  # of Adam; SGD takes ten times as much
SCHEDULES: tuple[Schedule, ...] = ("constant", "cosine", "linear")
WARM_UP = 0.05  # of the steps, where there is one
SGD_FACTOR = 10.0
DEFAULT_RATE = 1e-3  # what a user starts with, again of Adam


@dataclass(frozen=True)
class GridPoint:
    """One way of setting the learning rate beforehand."""

    rate: float
    schedule: Schedule
    warm_up: bool

    @property
    def name(self) -> str:
        """The name in results."""
        return f"grid {self.rate:g} {self.schedule}" + (" warm-up" if self.warm_up else "")

    @property
    def is_constant(self) -> bool:
        """True for a plain constant rate."""
        return self.schedule == "constant" and not self.warm_up

    def peak(self, task: Task) -> float:
        """The highest rate, in units of the task's base optimizer."""
        return self.rate * (SGD_FACTOR if task.base == "sgd" else 1.0)

    def lr(self, task: Task, step: int) -> float:
        """Returns the rate of ``step``, counted from 0: linear warm-up to the peak, then the schedule, to zero at the end."""
        peak = self.peak(task)
        warm = int(WARM_UP * task.steps) if self.warm_up else 0
        if step < warm:
            return peak * (step + 1) / warm
        done = (step - warm) / (task.steps - warm)
        if self.schedule == "cosine":
            return peak * 0.5 * (1 + math.cos(math.pi * done))
        return peak * (1 - done if self.schedule == "linear" else 1.0)


GRID = tuple(
    GridPoint(rate, schedule, warm_up)
    for rate in RATES
    for schedule in SCHEDULES
    for warm_up in (False, True)
)

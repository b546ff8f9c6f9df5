"""The reference: a fixed grid of constant rates that fall linearly to zero at the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..grid import SGD_FACTOR
from ..iterate_average import IterateAverage
from ..methods import Method, Setting, set_rate
from ..task import Task

RATES = (1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1)  # of Adam; SGD takes ten times as much
WARM_UP = 0.1  # of the steps, with the rule's finish
BEGINS, FROM = 0.6, 0.7  # the rule's finish: part of the steps, and of the rate
BEGINS_PLAIN = 0.5


@dataclass(frozen=True)
class Point:
    """A rate and its schedule.

    Attributes:
        rate: the rate that is held.
        finish: "average" for the schedule of the rule, with a warm-up and a finish that goes on from the average of the
            iterates; "linear" for the plain one, which goes on from the last iterate at the whole rate.
    """

    rate: float
    finish: Literal["average", "linear"]

    @property
    def name(self) -> str:
        """The name in results."""
        return f"reference {self.rate:g} {self.finish}"

    def finish_begins(self, task: Task) -> int:
        """Returns the first step of the finish."""
        return int((BEGINS if self.finish == "average" else BEGINS_PLAIN) * task.steps)

    def lr(self, task: Task, step: int) -> float:
        """Returns the rate of ``step``, counted from 0, in units of the task's base optimizer."""
        peak = self.rate * (SGD_FACTOR if task.base == "sgd" else 1.0)
        warm = int(WARM_UP * task.steps) if self.finish == "average" else 0
        if step < warm:
            return peak * (step + 1) / warm
        begins = self.finish_begins(task)
        if step < begins:
            return peak
        first = FROM if self.finish == "average" else 1.0
        return first * peak * (task.steps - step) / (task.steps - begins)

    def make(self, setting: Setting) -> Method:
        """Makes the method."""
        return Held(setting, self)


class Held(Method):
    """A point of the reference at work."""

    def __init__(self, setting: Setting, point: Point) -> None:
        self._task, self._point = setting.task, point
        super().__init__(setting.task.optimizer(setting.model, point.lr(setting.task, 0)))
        self._average = IterateAverage(setting.model) if point.finish == "average" else None

    def begin(self, step: int, x: Tensor, y: Tensor) -> None:
        """Sets the rate, and goes on from the average where the finish begins."""
        if self._average is not None and step == self._point.finish_begins(self._task):
            self._average.continue_from_it()
            self._average = None
        set_rate(self.optimizer, self._point.lr(self._task, step))

    def step(self) -> None:
        """Takes a step, and counts the iterate in before the finish."""
        self.optimizer.step()
        if self._average is not None:
            self._average.take()


REFERENCE = {
    point.name: point for point in (Point(rate, f) for rate in RATES for f in ("average", "linear"))
}

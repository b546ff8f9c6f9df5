"""The points of the grid as methods."""

from __future__ import annotations

from torch import Tensor

from .grid import GRID, GridPoint
from .iterate_average import IterateAverage
from .methods import Maker, Method, Setting, set_rate


class Scheduled(Method):
    """A point of the grid; the average of its iterates is kept beside."""

    def __init__(self, setting: Setting, point: GridPoint) -> None:
        super().__init__(setting.task.optimizer(setting.model, point.lr(setting.task, 0)))
        self._task, self._point = setting.task, point
        self._average = IterateAverage(setting.model)
        self.averaged = self._average.in_place

    def begin(self, step: int, x: Tensor, y: Tensor) -> None:
        """Sets the rate."""
        set_rate(self.optimizer, self._point.lr(self._task, step))

    def step(self) -> None:
        """Takes a step and counts the iterate in."""
        self.optimizer.step()
        self._average.take()


class UsersRate(Method):
    """The base optimizer at the user's lr, whatever it is."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.task.optimizer(setting.model, setting.user_lr))


def _maker(point: GridPoint) -> Maker:
    return lambda setting: Scheduled(setting, point)


SCHEDULED: dict[str, Maker] = {
    **{point.name: _maker(point) for point in GRID},
    "user's rate": UsersRate,
}

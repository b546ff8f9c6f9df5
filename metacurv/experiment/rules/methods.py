"""What is compared: each method is an optimizer with, where it has them, an average of its own and a line in the loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .datasets import Splits
from .grid import GRID, GridPoint
from .iterate_average import IterateAverage
from .tasks import Task


@dataclass(frozen=True)
class Setting:
    """Where a method is to work."""

    task: Task
    model: nn.Module
    splits: Splits
    seed: int
    user_lr: float = 1e-3


class Method:
    """An optimizer at work, as the training loop calls it. ``averaged``: a context with the average in place, None without one."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    averaged: Callable[[], AbstractContextManager[Any]] | None = None

    def before_step(self, step: int) -> None:
        """Before the forward pass of ``step``, counted from 0."""

    def with_loss(self, loss: Tensor) -> None:
        """Between the forward and the backward pass."""

    def after_step(self, step: int) -> None:
        """After the optimizer's step."""

    def evaluating(self) -> AbstractContextManager[Any]:
        """Around every evaluation of the last iterate."""
        return nullcontext()


class Scheduled(Method):
    """A point of the grid; the average of its iterates is kept beside."""

    def __init__(self, setting: Setting, point: GridPoint) -> None:
        super().__init__(setting.task.optimizer(setting.model, point.lr(setting.task, 0)))
        self._task, self._point = setting.task, point
        self._average = IterateAverage(setting.model)
        self.averaged = self._average.in_place

    def before_step(self, step: int) -> None:
        self.optimizer.param_groups[0]["lr"] = self._point.lr(self._task, step)

    def after_step(self, step: int) -> None:
        self._average.take()


Maker = Callable[[Setting], Method]


def _grid_makers() -> dict[str, Maker]:
    def maker(point: GridPoint) -> Maker:
        return lambda setting: Scheduled(setting, point)

    return {point.name: maker(point) for point in GRID}


METHODS: dict[str, Maker] = _grid_makers()

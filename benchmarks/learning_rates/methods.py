"""The interface between a method and the training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .part import Splits
from .task import Task


@dataclass(frozen=True)
class Setting:
    """The setting in which a method works.

    ``user_lr``: the lr that the base is made with, where the method leaves that to the user.
    """

    task: Task
    model: nn.Module
    splits: Splits
    seed: int
    user_lr: float


class Method:
    """An optimizer at work, called by the training loop.

    ``averaged``: a context with the average in place, None without one. ``rate``: reads the rate that the method has found,
    None for methods that find none, or keep it to themselves.
    """

    averaged: Callable[[], AbstractContextManager[Any]] | None = None
    rate: Callable[[], float] | None = None

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def begin(self, step: int, x: Tensor, y: Tensor) -> None:
        """Begins ``step``, counted from 0, before its forward pass on the batch (x, y)."""

    def forward(self) -> AbstractContextManager[Any]:
        """Returns a context for the forward pass."""
        return nullcontext()

    def with_loss(self, loss: Tensor) -> None:
        """Takes the loss between the forward and the backward pass."""

    def step(self) -> None:
        """Takes one step from the gradients."""
        self.optimizer.step()

    def evaluating(self) -> AbstractContextManager[Any]:
        """Returns a context for evaluations of the last iterate."""
        return nullcontext()


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Gives all parameter groups the rate ``lr``."""
    for group in optimizer.param_groups:
        group["lr"] = lr


Maker = Callable[[Setting], Method]

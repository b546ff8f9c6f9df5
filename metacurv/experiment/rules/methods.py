"""What a method is to the training loop."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .datasets import Splits
from .tasks import Task


@dataclass(frozen=True)
class Setting:
    """Where a method is to work. ``user_lr``: what the base is made with, where the method leaves that to the user."""

    task: Task
    model: nn.Module
    splits: Splits
    seed: int
    user_lr: float


class Method:
    """An optimizer at work, called by the training loop.

    ``averaged``: a context with the average in place, None without one.
    """

    averaged: Callable[[], AbstractContextManager[Any]] | None = None

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer

    def begin(self, step: int, x: Tensor, y: Tensor) -> None:
        """Before the forward pass of ``step``, counted from 0, on the batch (x, y)."""

    def forward(self) -> AbstractContextManager[Any]:
        """Around the forward pass."""
        return nullcontext()

    def with_loss(self, loss: Tensor) -> None:
        """Between the forward and the backward pass."""

    def step(self) -> None:
        """One step from the gradients."""
        self.optimizer.step()

    def evaluating(self) -> AbstractContextManager[Any]:
        """Around evaluations of the last iterate."""
        return nullcontext()


Maker = Callable[[Setting], Method]

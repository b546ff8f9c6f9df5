"""GeN (Bu and Xu 2024, "Automatic gradient descent with generalized Newton's method"), written anew.

Every 8 steps a parabola is laid through the training batch's loss at theta and theta +- lr u; its minimum, slope /
curvature, enters a moving average of decay 0.9 where both are positive (section 3 and algorithm 1 there).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .methods import Method, Setting
from .own_step import OwnStep

_EVERY, _DECAY, _FIRST = 8, 0.9, 1e-3


class GeN(Method):
    """On the task's base optimizer; weight decay is part of its direction, as there."""

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting.task.optimizer(setting.model, _FIRST))
        self._setting, self._own = setting, OwnStep(setting, self.optimizer)
        self._lr, self._taken = _FIRST, 0

    def begin(self, step: int, x: Tensor, y: Tensor) -> None:
        """Keeps the batch."""
        self._batch = x, y

    @torch.no_grad()
    def step(self) -> None:
        """Looks on every eighth step."""
        u = self._own.look()
        if self._taken % _EVERY == 0:
            here, ahead, behind = (self._loss(u, at) for at in (0.0, self._lr, -self._lr))
            slope = (behind - ahead) / (2 * self._lr)
            curvature = (ahead + behind - 2 * here) / self._lr**2
            if slope > 0 and curvature > 0:
                self._lr = _DECAY * self._lr + (1 - _DECAY) * slope / curvature
        self._own.go(u, self._lr)
        self._taken += 1

    def _loss(self, u: list[Tensor], lr: float) -> float:
        self._own.go(u, lr)
        x, y = self._batch
        return self._setting.task.loss_fn(self._setting.model(x), y).double().item()

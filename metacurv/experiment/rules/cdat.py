"""CDAT (Roulet, Agarwala et al. 2024, "Stepping on the edge: curvature aware learning rate tuners"), written anew.

lr = sigma max(n, 0) / |d|, with n = g . u and d = u . H u on the training batch, each a moving average of decay 0.9, at
every step. sigma = 2 keeps to the edge of stability in full batches; they find a little less best in small ones (section 3
there).
"""

from __future__ import annotations

from torch import Tensor

import metacurv

from .methods import Method, Setting
from .own_step import OwnStep

_DECAY, _MOST = 0.9, 1.0


class Cdat(Method):
    """On the task's base optimizer."""

    def __init__(self, setting: Setting, sigma: float) -> None:
        super().__init__(setting.task.optimizer(setting.model, 1.0))
        self._setting, self._own, self._sigma = setting, OwnStep(setting, self.optimizer), sigma
        self._slope = self._curvature = 0.0

    def begin(self, step: int, x: Tensor, y: Tensor) -> None:
        """Keeps the batch."""
        self._batch = x, y

    def step(self) -> None:
        """Measures and steps."""
        u = self._own.look()
        model, (x, y) = self._setting.model, self._batch
        slope = sum(
            float((p.grad * part).sum())
            for p, part in zip(model.parameters(), u, strict=True)
            if p.grad is not None
        )
        curvature = 0.0
        if any(bool(part.any()) for part in u):
            curvature = metacurv.directional_curvature(
                model, self._setting.task.loss_fn, x, y, u, kind="hessian"
            )
        self._slope = _DECAY * self._slope + (1 - _DECAY) * slope
        self._curvature = _DECAY * self._curvature + (1 - _DECAY) * curvature
        lr = self._sigma * max(self._slope, 0.0) / max(abs(self._curvature), 1e-30)
        self._own.go(u, min(lr, _MOST))

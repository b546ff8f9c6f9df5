"""CDAT (Roulet, Agarwala et al., "Stepping on the edge: curvature aware learning rate tuners", arXiv:2407.06183), written anew.

lr = sigma n / d,  n = max(g . u, 0),  d = |u . H u|,  u the base optimizer's own direction, on the training batch of every
step; n and d are moving averages of decay 0.9. sigma = 2 is their rule for full batches, where it keeps to the edge of
stability; the smaller the batch, the smaller the best sigma, they find, and 2 loses mlp-relu and mlp-sgd here. The
bound of 1 on lr is ours: where d vanishes they have none.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import metacurv

from .methods import Method, Setting
from .own_step import OwnStep

_DECAY, _MOST = 0.9, 1.0


class Cdat(Method):
    """The rule CDAT on the task's base optimizer."""

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
            with sdpa_kernel(SDPBackend.MATH):  # attention that can be differentiated twice
                curvature = metacurv.directional_curvature(
                    model, self._setting.task.loss_fn, x, y, u, kind="hessian"
                )
        self._slope = _DECAY * self._slope + (1 - _DECAY) * max(slope, 0.0)
        self._curvature = _DECAY * self._curvature + (1 - _DECAY) * abs(curvature)
        lr = self._sigma * self._slope / max(self._curvature, 1e-30)
        self._own.go(u, min(lr, _MOST))

"""GeN (Bu and Xu, "Gradient descent with generalized Newton's method", ICLR 2025, arXiv:2407.02772), written anew.

The best step along the base optimizer's own direction u is  lr* = g . u / (u . H u),  by a parabola through the losses at
theta and theta +- lr u; lr moves a tenth of the way to it. As in the authors' code (github.com/ShiyunXu/AutoGeN): the losses
are of a training batch that the step does not use, lr* is held within a factor of two of lr, lr starts at 1e-4, and a
parabola that does not rise to both sides of a minimum ahead changes nothing. On the step's own batch, whose slope along u is
too steep, lr runs away and mlp-relu and mlp-sgd end at chance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv.experiment.training import Batches

from .methods import Method, Setting
from .own_step import OwnStep

_EVERY, _DECAY, _FIRST = 8, 0.9, 1e-4
_OTHER_ORDER = 1 << 32  # added to the seed: the training loop's batches follow from the seed itself


class GeN(Method):
    """The rule GeN on the task's base optimizer; weight decay is part of its direction, as in the authors' code."""

    def __init__(self, setting: Setting) -> None:
        task, train = setting.task, setting.splits.train
        super().__init__(task.optimizer(setting.model, _FIRST))
        self._setting, self._own = setting, OwnStep(setting, self.optimizer)
        self._batches = Batches(len(train), task.batch_size, _OTHER_ORDER + setting.seed)
        self._lr, self._taken = _FIRST, 0

    @torch.no_grad()
    def step(self) -> None:
        """Looks on every eighth step."""
        u = self._own.look()
        if self._taken % _EVERY == 0:
            x, y = self._batch()
            here, ahead, behind = (self._loss(u, at, x, y) for at in (0.0, self._lr, -self._lr))
            slope = (behind - ahead) / (2 * self._lr)
            curvature = (ahead + behind - 2 * here) / self._lr**2
            if slope > 0 and curvature > 0:
                best = min(max(slope / curvature, self._lr / 2), 2 * self._lr)
                self._lr = _DECAY * self._lr + (1 - _DECAY) * best
        self._own.go(u, self._lr)
        self._taken += 1

    def _batch(self) -> tuple[Tensor, Tensor]:
        train = self._setting.splits.train
        rows = self._batches[self._taken // _EVERY]
        return train.x[rows], train.y[rows]

    def _loss(self, u: list[Tensor], lr: float, x: Tensor, y: Tensor) -> float:
        self._own.go(u, lr)
        return self._setting.task.loss_fn(self._setting.model(x), y).double().item()

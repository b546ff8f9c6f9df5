"""Published optimizers without a learning rate to tune, by their authors' packages and at the settings that they advise."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor

from .grid import WARM_UP
from .methods import Maker, Method, Setting
from .tasks import Task


def _decay(task: Task) -> float:
    return 0.01 if task.base == "adamw" else 0.0


class _Cosine(Method):
    """An optimizer whose lr falls from 1 to 0 as a cosine, which is how Prodigy's authors run it."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        super().__init__(optimizer)
        self._steps = steps

    def begin(self, step: int, x: Tensor, y: Tensor) -> None:
        self.optimizer.param_groups[0]["lr"] = 0.5 * (1 + math.cos(math.pi * step / self._steps))


def _prodigy(setting: Setting) -> Any:
    from prodigyopt import Prodigy  # type: ignore[import-untyped]

    return Prodigy(
        setting.model.parameters(),
        lr=1.0,
        weight_decay=_decay(setting.task),
        use_bias_correction=True,
        safeguard_warmup=True,
    )


class _ScheduleFree(Method):
    """A schedule-free optimizer, evaluated at its own average, which its ``eval()`` puts in place."""

    def evaluating(self) -> AbstractContextManager[Any]:
        return self._average_in_place()

    @contextmanager
    def _average_in_place(self) -> Iterator[None]:
        optimizer: Any = self.optimizer
        optimizer.eval()
        try:
            yield
        finally:
            optimizer.train()


def _schedule_free(setting: Setting, adam_lr: float) -> Method:
    import schedulefree  # type: ignore[import-untyped]

    parameters, warm_up = setting.model.parameters(), int(WARM_UP * setting.task.steps)
    if setting.task.base == "sgd":
        optimizer = schedulefree.SGDScheduleFree(
            parameters, lr=1.0, momentum=0.9, warmup_steps=warm_up
        )
    else:
        optimizer = schedulefree.AdamWScheduleFree(
            parameters, lr=adam_lr, weight_decay=_decay(setting.task), warmup_steps=warm_up
        )
    optimizer.train()
    return _ScheduleFree(optimizer)


def _d_adaptation(setting: Setting) -> Method:
    import dadaptation  # type: ignore[import-untyped]

    parameters = setting.model.parameters()
    if setting.task.base == "sgd":
        return Method(dadaptation.DAdaptSGD(parameters, lr=1.0, momentum=0.9))
    return Method(
        dadaptation.DAdaptAdam(parameters, lr=1.0, weight_decay=_decay(setting.task), decouple=True)
    )


TUNING_FREE: dict[str, Maker] = {
    "prodigy": lambda setting: Method(_prodigy(setting)),
    "prodigy cosine": lambda setting: _Cosine(_prodigy(setting), setting.task.steps),
    "schedule-free": lambda setting: _schedule_free(setting, 2.5e-3),
    "schedule-free 0.01": lambda setting: _schedule_free(setting, 1e-2),
    "d-adaptation": _d_adaptation,
}

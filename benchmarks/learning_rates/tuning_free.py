"""Published optimizers without a learning rate to tune, by their authors' packages and at the settings that they advise.

ScheduleFree+ (arXiv:2605.19095), the newest of Schedule-Free's authors, is in no package: schedulefree 1.4.1 lacks it.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from typing import Any

import torch
from torch import Tensor

from .grid import WARM_UP
from .methods import Maker, Method, Setting, set_rate
from .task import Task


def _decay(task: Task) -> float:
    return 0.01 if task.base == "adamw" else 0.0


class _Cosine(Method):
    """An optimizer whose lr falls from 1 to 0 as a cosine, which is how Prodigy's authors run it."""

    def __init__(self, optimizer: torch.optim.Optimizer, steps: int) -> None:
        super().__init__(optimizer)
        self._steps = steps

    def begin(self, step: int, x: Tensor, y: Tensor) -> None:
        set_rate(self.optimizer, 0.5 * (1 + math.cos(math.pi * step / self._steps)))


def _silence() -> AbstractContextManager[Any]:
    """Keeps what some packages print where an optimizer is made from the progress bars."""
    return redirect_stdout(io.StringIO())


def _groups(setting: Setting) -> list[dict[str, Any]]:
    return setting.task.groups(setting.model)


def _prodigy(setting: Setting) -> Any:
    from prodigyopt import Prodigy  # type: ignore[import-untyped]

    return Prodigy(
        _groups(setting),
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

    parameters, warm_up = _groups(setting), int(WARM_UP * setting.task.steps)
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

    parameters = _groups(setting)
    if setting.task.base == "sgd":
        return Method(dadaptation.DAdaptSGD(parameters, lr=1.0, momentum=0.9))
    with _silence():
        return Method(
            dadaptation.DAdaptAdam(
                parameters, lr=1.0, weight_decay=_decay(setting.task), decouple=True
            )
        )


def _prodigy_plus(setting: Setting) -> Method:
    from prodigyplus.prodigy_plus_schedulefree import ProdigyPlusScheduleFree

    # All its defaults, which "should just work": lr=1 and no schedule; its own factored Adam, whatever the task's base is.
    with _silence():
        optimizer = ProdigyPlusScheduleFree(_groups(setting), weight_decay=_decay(setting.task))
    optimizer.train()
    return _ScheduleFree(optimizer)


TUNING_FREE: dict[str, Maker] = {
    "prodigy": lambda setting: Method(_prodigy(setting)),
    "prodigy cosine": lambda setting: _Cosine(_prodigy(setting), setting.task.steps),
    "schedule-free": lambda setting: _schedule_free(setting, 2.5e-3),
    "schedule-free 0.01": lambda setting: _schedule_free(setting, 1e-2),
    "prodigy-plus-schedule-free": _prodigy_plus,
    "d-adaptation": _d_adaptation,
}

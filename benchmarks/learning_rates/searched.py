"""The directional rule as it landed first: it searches a rate to a quarter of the horizon, and then holds it.

It is the metacurv of another checkout that does this (``--searched``); where that is imported, ``MetaCurvatureLR`` is called
as its README had it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, TensorDataset

import metacurv

from .methods import Maker, Method, Setting

COMMIT = "e20f281"


def searched(setting: Setting, *, held_out: bool = False, **options: Any) -> Method:
    """``MetaCurvatureLR`` of commit e20f281 on the task's base optimizer; ``held_out``: probe the validation data."""
    task, part = setting.task, setting.splits.validation if held_out else setting.splits.train
    optimizer: Any = metacurv.MetaCurvatureLR(
        task.optimizer(setting.model, setting.user_lr),
        model=setting.model,
        loss_fn=task.loss_fn,
        probe=DataLoader(TensorDataset(part.x, part.y), batch_size=task.batch_size),
        seed=setting.seed,
        **options,
    )
    method = Method(optimizer)
    method.rate = lambda: float(optimizer.effective_lrs[0])
    if options.get("average", "horizon" in options):
        method.averaged = optimizer.averaged_parameters
    return method


def _held_out(setting: Setting) -> Method:
    rule: Any = metacurv.DirectionalRule
    return searched(setting, held_out=True, rule=rule.held_out(), average=True)


SEARCHED: dict[str, Maker] = {
    "searched": lambda setting: searched(setting, horizon=setting.task.steps),
    "searched, no horizon": lambda setting: searched(setting, average=True),
    "searched, following": lambda setting: searched(setting),
    "searched, held out": _held_out,
}


def is_imported(checkout: Path) -> bool:
    """True where the metacurv of this process is that of ``checkout``."""
    return Path(metacurv.__file__).resolve().is_relative_to(checkout.resolve())

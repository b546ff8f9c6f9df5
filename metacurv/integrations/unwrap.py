"""Finds our optimizer inside of what a framework has put around it."""

from __future__ import annotations

from typing import Any

from metacurv.optim.directional.optimizer import DirectionalLR


def our_optimizer(optimizer: Any) -> DirectionalLR | None:
    """Returns the ``DirectionalLR`` that ``optimizer`` is or wraps; None where there is none."""
    while optimizer is not None and not isinstance(optimizer, DirectionalLR):
        optimizer = getattr(optimizer, "optimizer", None)
    return optimizer

"""The learning rates that a step is taken with, and what the groups show of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from metacurv.optim.base_step import Rate
from metacurv.optim.directional.group_rates import GroupRates


class EffectiveRates:
    """Derives the learning rate of every group from those of the scales, and writes ``group["lr_scale"]``.

    Args:
        base: the base optimizer.
        groups: the shares of its groups.
        most: a cap on the rate of every group, or None.
    """

    def __init__(self, base: Optimizer, groups: GroupRates, most: float | None) -> None:
        self._base, self._groups, self._most = base, groups, most
        self._last: tuple[Any, list[Rate]] | None = None

    def of_groups(self, scales: Sequence[float]) -> list[Rate]:
        """Returns the learning rate of every group where those of the scales are ``scales``."""
        rates = [
            scales[scale] * share
            for scale, share in zip(self._groups.scale_of_group, self._groups.shares(), strict=True)
        ]
        most = self._most
        if most is None:
            return rates
        return [r.clamp(max=most) if isinstance(r, Tensor) else min(r, most) for r in rates]

    def of_step(self, scales: Sequence[float]) -> list[Rate]:
        """Returns the same and shows it in the groups; it is computed anew only where something has changed."""
        lrs = [(group["lr"], group.get("max_lr")) for group in self._base.param_groups]
        key = (list(scales), lrs)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        rates = self.of_groups(scales)
        self._show(rates)
        # A tensor's number may change behind its back.
        holds_tensor = any(isinstance(value, Tensor) for value in (*rates, *(lr for lr, _ in lrs)))
        self._last = None if holds_tensor else (key, rates)
        return rates

    def _show(self, rates: Sequence[Rate]) -> None:
        """Writes ``group["lr_scale"]``, the effective rate over the group's lr."""
        for group, rate in zip(self._base.param_groups, rates, strict=True):
            lr = group["lr"]
            if isinstance(rate, Tensor):
                group["lr_scale"] = rate / lr
            else:
                group["lr_scale"] = rate / float(lr) if lr > 0 else 0.0

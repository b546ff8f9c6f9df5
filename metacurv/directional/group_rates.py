"""From the rates that the rule finds to a learning rate for each parameter group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.directional.decoupled_decay import decoupled_decay


class GroupRates:
    """The user's lr of a group counts in two ways: beside those of other groups, and beside what it was at first.

    A group's rate is that of its scale times lr / reference, the reference being the largest first lr under the scale. So
    the level of the user's lr has no effect, the ratios of groups stay, and what a scheduler does multiplies the rate.

    Args:
        base: the optimizer.
        per_group: a scale for each group; else one for all.
    """

    def __init__(self, base: Optimizer, per_group: bool) -> None:
        self._base, self._per_group = base, per_group
        self._first = [_first_lr(group) for group in base.param_groups]
        self._check()

    @property
    def scales(self) -> list[list[int]]:
        """The groups under each scale, by index."""
        every = range(len(self._base.param_groups))
        return [[g] for g in every] if self._per_group else [list(every)]

    def group_added(self) -> None:
        """The base has one more group."""
        self._first.append(_first_lr(self._base.param_groups[-1]))

    def shares(self) -> list[float]:
        """lr / reference of every group, as the user and the scheduler have it now."""
        groups = self._base.param_groups
        if len(groups) == 1:
            return [float(groups[0]["lr"]) / self._first[0]]
        references = [max(self._first[g] for g in scale) for scale in self.scales]
        of_group = references if self._per_group else references * len(groups)
        return [float(group["lr"]) / r for group, r in zip(groups, of_group, strict=True)]

    def first_shares(self) -> list[float]:
        """Like ``shares``, but 1 for the largest under every scale, wherever a scheduler begins."""
        shares = self.shares()
        for scale in self.scales:
            largest = max(shares[g] for g in scale)
            first = max(self._first[g] for g in scale)
            for g in scale:
                shares[g] = shares[g] / largest if largest > 0 else self._first[g] / first
        return shares

    def keep(self, rates: Sequence[float | Tensor]) -> list[float]:
        """1 - rate x decoupled weight decay of every group."""
        return [
            1 - float(rate) * decoupled_decay(self._base, group)
            for rate, group in zip(rates, self._base.param_groups, strict=True)
        ]

    def state(self) -> list[float]:
        """The first learning rates."""
        return list(self._first)

    def load(self, first: list[float]) -> None:
        """Takes back what ``state`` gave."""
        self._first = list(first)

    def _check(self) -> None:
        for scale in self.scales:
            if max(self._first[g] for g in scale) == 0:
                raise ValueError(
                    "optimizer must have a learning rate > 0 in "
                    + (f"parameter group {scale[0]}" if self._per_group else "a parameter group")
                    + ", got 0: only ratios of learning rates count with rule='directional', but 0 has none"
                )


def _first_lr(group: dict[str, Any]) -> float:
    """Before any scheduler."""
    return _validate.real("optimizer's lr", float(group.get("initial_lr", group["lr"])), low=0)

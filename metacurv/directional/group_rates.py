"""From the rates that the rule finds to a learning rate for each parameter group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metacurv import _validate
from metacurv._scalars import scalar
from metacurv.base_step import Rate
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
        self.load([_first_lr(group) for group in base.param_groups])

    def load(self, first: list[float]) -> None:
        """Takes the first learning rates, as ``state`` gives them.

        Kept with what follows, since every step asks: ``scales``, the groups under each scale, ``scale_of_group``
        and ``references``.

        Raises:
            ValueError: all groups under a scale had lr 0.
        """
        every = range(len(first))
        scales = [[g] for g in every] if self._per_group else [list(every)]
        references = [max(first[g] for g in scale) for scale in scales]
        if min(references) == 0:
            where = (
                f"parameter group {references.index(0)}" if self._per_group else "a parameter group"
            )
            raise ValueError(
                f"optimizer must have a learning rate > 0 in {where}, got 0: only ratios of learning rates count with "
                "rule='directional', but 0 has none"
            )
        self._first, self.scales = list(first), scales
        self.scale_of_group = list(every) if self._per_group else [0] * len(first)
        self._reference_of_group = [references[scale] for scale in self.scale_of_group]
        self.references = references

    def group_added(self) -> None:
        """The base has one more group."""
        self.load([*self._first, _first_lr(self._base.param_groups[-1])])

    def shares(self) -> list[Rate]:
        """lr / reference of every group, as the user and the scheduler have it now; a tensor where the lr is one on a GPU."""
        return [
            _number(group["lr"])
            / float(group.get("max_lr", reference))  # OneCycleLR brings a level of its own
            for group, reference in zip(
                self._base.param_groups, self._reference_of_group, strict=True
            )
        ]

    def largest(self, shares: Sequence[Rate]) -> list[Rate]:
        """The largest share under every scale: what a rate is multiplied by before it comes to the groups."""
        return [_largest([shares[g] for g in scale]) for scale in self.scales]

    def first_shares(self) -> list[float]:
        """Like ``shares``, but 1 for the largest under every scale, wherever a scheduler begins."""
        now = [float(share) for share in self.shares()]
        first = [
            lr / reference
            for lr, reference in zip(self._first, self._reference_of_group, strict=True)
        ]
        largest = [max(now[g] for g in scale) for scale in self.scales]
        return [
            now[g] / largest[scale] if largest[scale] > 0 else first[g]
            for g, scale in enumerate(self.scale_of_group)
        ]

    def keep(self, rates: Sequence[Rate]) -> list[Rate]:
        """1 - rate x decoupled weight decay of every group."""
        decays = [decoupled_decay(self._base, group) for group in self._base.param_groups]
        return [
            1 - rate * decay if decay else 1.0 for rate, decay in zip(rates, decays, strict=True)
        ]

    def state(self) -> list[float]:
        """The first learning rates."""
        return list(self._first)


def _first_lr(group: dict[str, Any]) -> float:
    """Before any scheduler."""
    return _validate.real("optimizer's lr", float(group.get("initial_lr", group["lr"])), low=0)


def _number(lr: float | Tensor) -> Rate:
    """A tensor on a GPU stays one, as a number would wait for it."""
    return lr.detach() if isinstance(lr, Tensor) and lr.is_cuda else float(lr)


def _largest(values: Sequence[Rate]) -> Rate:
    if len(values) == 1:
        return values[0]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return max(values)
    return torch.stack([scalar(v, torch.float64, tensors[0].device) for v in values]).amax()

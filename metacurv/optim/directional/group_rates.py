"""The learning rate of each parameter group, from the rates that the directional rule finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.ops._reference.scalars import scalar
from metacurv.optim.base_step import Rate

# torch's optimizers that multiply parameters by 1 - lr * weight_decay whatever their flags (Loshchilov and Hutter 2019), by
# name: Muon came with torch 2.9 only.
_ALWAYS = frozenset({"Adafactor", "AdamW", "Muon"})


def decoupled_decay(base: Optimizer, group: dict[str, Any]) -> float:
    """Returns w of the factor 1 - lr w by which ``base`` shrinks the parameters of ``group`` beside its step; else 0."""
    names = {cls.__name__ for cls in type(base).__mro__}
    if names & _ALWAYS or group.get("decoupled_weight_decay"):
        return float(group.get("weight_decay", 0.0))
    return 0.0


class GroupRates:
    """Derives each group's rate from the rate of its scale and the user's own ``lr`` of the group.

    A scale is a set of groups that share one rate of the rule. A group's rate is that of its scale times lr / reference; the
    reference is the largest first lr under the scale. So the level of the user's lr has no effect, the ratios of groups stay,
    and a scheduler multiplies the rate.

    Args:
        base: the base optimizer.
        per_group: True for a scale for each group, False for one scale over all groups.
    """

    def __init__(self, base: Optimizer, per_group: bool) -> None:
        self._base, self._per_group = base, per_group
        self.load([_first_lr(group) for group in base.param_groups])

    def load(self, first: list[float]) -> None:
        """Takes the first learning rates, as ``state`` gives them.

        It also derives ``scales``, the groups under each scale, ``scale_of_group`` and ``references``, which every step asks
        for.

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
        """Takes in the group that was just added to the base."""
        self.load([*self._first, _first_lr(self._base.param_groups[-1])])

    def shares(self) -> list[Rate]:
        """Returns lr / reference of every group, with the lr of this moment; a tensor where the lr is one on a GPU."""
        return [
            _number(group["lr"])
            / float(group.get("max_lr", reference))  # OneCycleLR brings a level of its own
            for group, reference in zip(
                self._base.param_groups, self._reference_of_group, strict=True
            )
        ]

    def largest(self, shares: Sequence[Rate]) -> list[Rate]:
        """Returns the largest share under every scale: a rate is multiplied by it before it comes to the groups."""
        return [_largest([shares[g] for g in scale]) for scale in self.scales]

    def first_shares(self) -> list[float]:
        """Returns ``shares`` divided by the largest under every scale, so that the first step does not depend on a warm-up."""
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
        """Returns 1 - rate x decoupled weight decay of every group."""
        decays = [decoupled_decay(self._base, group) for group in self._base.param_groups]
        return [
            1 - rate * decay if decay else 1.0 for rate, decay in zip(rates, decays, strict=True)
        ]

    def state(self) -> list[float]:
        """Returns the first learning rates, for a state dict."""
        return list(self._first)


def _first_lr(group: dict[str, Any]) -> float:
    """Returns the lr that the group had before any scheduler."""
    return _validate.real("optimizer's lr", float(group.get("initial_lr", group["lr"])), low=0)


def _number(lr: float | Tensor) -> Rate:
    """Returns the lr as a float; a tensor on a GPU stays a tensor, as a float would make the host wait for it."""
    return lr.detach() if isinstance(lr, Tensor) and lr.is_cuda else float(lr)


def _largest(values: Sequence[Rate]) -> Rate:
    if len(values) == 1:
        return values[0]
    tensors = [value for value in values if isinstance(value, Tensor)]
    if not tensors:
        return max(values)
    return torch.stack([scalar(v, torch.float64, tensors[0].device) for v in values]).amax()

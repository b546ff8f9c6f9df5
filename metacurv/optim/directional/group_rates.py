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


class GroupRates:
    """Derives each group's rate from the rate of its scale and the user's own ``lr`` of the group.

    A scale is a set of groups that share one rate of the rule. A group's rate is that of its scale times lr / reference; the
    reference is the largest first lr under the scale. So the level of the user's lr has no effect, the ratios of groups stay,
    and a scheduler multiplies the rate.

    Args:
        base: the base optimizer.
        per_group: True for a scale for each group, False for one scale over all groups.
        most: a cap on the rate of every group, or None.

    Attributes:
        scales: the groups under each scale.
        scale_of_group: the scale of each group.
        references: the reference of each scale.
    """

    def __init__(self, base: Optimizer, per_group: bool, most: float | None) -> None:
        self._base, self._per_group, self._most = base, per_group, most
        self.load([_first_lr(group) for group in base.param_groups])

    def load(self, first: list[float]) -> None:
        """Takes the first learning rates, as ``state`` gives them.

        Raises:
            ValueError: all groups under a scale had lr 0.
        """
        every = list(range(len(first)))
        scales = [[g] for g in every] if self._per_group else [every]
        references = [max(first[g] for g in scale) for scale in scales]
        if min(references) == 0:
            where = (
                f"parameter group {references.index(0)}" if self._per_group else "a parameter group"
            )
            raise ValueError(
                f"optimizer must have a learning rate > 0 in {where}, got 0: only ratios of learning rates count with "
                "rule='directional', but 0 has none"
            )
        self._first, self.scales, self.references = list(first), scales, references
        self.scale_of_group = every if self._per_group else [0] * len(first)
        self._reference_of_group = [references[scale] for scale in self.scale_of_group]
        self._last: tuple[Any, list[Rate]] | None = None

    def state(self) -> list[float]:
        """Returns the first learning rates, for a state dict."""
        return list(self._first)

    def group_added(self) -> None:
        """Takes in the group that was just added to the base."""
        self.load([*self._first, _first_lr(self._base.param_groups[-1])])

    # Shares of the groups in the rates of their scales.

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
        largest = [max(now[g] for g in scale) for scale in self.scales]
        return [
            now[g] / largest[scale]
            if largest[scale] > 0
            else self._first[g] / self._reference_of_group[g]
            for g, scale in enumerate(self.scale_of_group)
        ]

    # Rates.

    def of_shares(self, scales: Sequence[float], shares: Sequence[Rate]) -> list[Rate]:
        """Returns the rate of every group with these rates of the scales and shares of the groups, without the cap."""
        return [
            scales[scale] * share for scale, share in zip(self.scale_of_group, shares, strict=True)
        ]

    def of_groups(self, scales: Sequence[float]) -> list[Rate]:
        """Returns the learning rate of every group where those of the scales are ``scales``."""
        rates, most = self.of_shares(scales, self.shares()), self._most
        if most is None:
            return rates
        return [r.clamp(max=most) if isinstance(r, Tensor) else min(r, most) for r in rates]

    def of_step(self, scales: Sequence[float]) -> list[Rate]:
        """Returns the same and writes ``group["lr_scale"]``, the rate over the group's lr; only where something has changed."""
        groups = self._base.param_groups
        lrs = [(group["lr"], group.get("max_lr")) for group in groups]
        key = (list(scales), lrs)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        rates = self.of_groups(scales)
        for group, rate in zip(groups, rates, strict=True):
            lr = group["lr"]
            if isinstance(rate, Tensor):
                group["lr_scale"] = rate / lr
            else:
                group["lr_scale"] = rate / float(lr) if lr > 0 else 0.0
        # A tensor's number may change behind its back.
        holds_tensor = any(isinstance(value, Tensor) for value in (*rates, *(lr for lr, _ in lrs)))
        self._last = None if holds_tensor else (key, rates)
        return rates

    # Parameters that a step moves.

    def moving(self, rates: Sequence[Rate]) -> list[list[Tensor]]:
        """Returns the parameters that the base is about to step at these rates of its groups, a list for every scale."""
        return [[p for _, p in scale] for scale in self._stepped(rates)]

    def keep(
        self, rates: Sequence[Rate], moved_at: Sequence[Rate] | None = None
    ) -> list[list[Rate]]:
        """Returns the part of every tensor of ``moving`` that decoupled weight decay leaves, 1 - rate x decay.

        Args:
            rates: the learning rates of the groups.
            moved_at: those that ``moving`` got, where they were others.
        """
        decays = [_decoupled_decay(self._base, group) for group in self._base.param_groups]
        of_group = [
            1 - rate * decay if decay else 1.0 for rate, decay in zip(rates, decays, strict=True)
        ]
        stepped = self._stepped(rates if moved_at is None else moved_at)
        return [[of_group[g] for g, _ in scale] for scale in stepped]

    def _stepped(self, rates: Sequence[Rate]) -> list[list[tuple[int, Tensor]]]:
        """Returns (index of the group, parameter) of every parameter that is stepped, a list for every scale.

        A rate on a GPU counts as moving its group, since looking at it would wait for the GPU.
        """
        return [
            [
                (g, p)
                for g in scale
                if isinstance(rates[g], Tensor) or rates[g] != 0
                for p in self._base.param_groups[g]["params"]
                if p.grad is not None
            ]
            for scale in self.scales
        ]


def _decoupled_decay(base: Optimizer, group: dict[str, Any]) -> float:
    """Returns w of the factor 1 - lr w by which ``base`` shrinks the parameters of ``group`` beside its step; else 0."""
    names = {cls.__name__ for cls in type(base).__mro__}
    if names & _ALWAYS or group.get("decoupled_weight_decay"):
        return float(group.get("weight_decay", 0.0))
    return 0.0


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

"""The parameters that a step of the base optimizer moves, under each scale, and what weight decay leaves of them."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from metacurv.optim.base_step import Rate
from metacurv.optim.directional.group_rates import GroupRates


def moving(base: Optimizer, rates: GroupRates, group_rates: Sequence[Rate]) -> list[list[Tensor]]:
    """Returns the parameters that the base is about to step at these rates of its groups, a list for every scale."""
    return [[p for _, p in scale] for scale in _stepped(base, rates, group_rates)]


def keep(
    base: Optimizer,
    rates: GroupRates,
    group_rates: Sequence[Rate],
    moved_at: Sequence[Rate] | None = None,
) -> list[list[Rate]]:
    """Returns the part of every tensor of ``moving`` at ``moved_at`` that weight decay at ``group_rates`` leaves."""
    of_group = rates.keep(group_rates)
    stepped = _stepped(base, rates, group_rates if moved_at is None else moved_at)
    return [[of_group[g] for g, _ in scale] for scale in stepped]


def _stepped(
    base: Optimizer, rates: GroupRates, group_rates: Sequence[Rate]
) -> list[list[tuple[int, Tensor]]]:
    """Returns (index of the group, parameter) of every parameter that is stepped, a list for every scale."""
    groups = base.param_groups
    return [
        [
            (g, p)
            for g in scale
            if _moves(group_rates[g])
            for p in groups[g]["params"]
            if p.grad is not None
        ]
        for scale in rates.scales
    ]


def _moves(rate: Rate) -> bool:
    """Tells whether a rate moves its group. One on a GPU counts as moving it, since looking at it would wait for the GPU."""
    return isinstance(rate, Tensor) or rate != 0

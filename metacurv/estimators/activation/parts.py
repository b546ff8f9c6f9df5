"""Each parameter's part of the trace, from cotangents at the parameters' sites."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from metacurv.estimators.activation.batch_layout import Layout
from metacurv.estimators.activation.bind import bind
from metacurv.estimators.activation.plan import ActivationPlan
from metacurv.estimators.activation.pull_by_engine import Cotangents
from metacurv.estimators.activation.uses import Use
from metacurv.estimators.graph.sites import Site, layer_input
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.numerics import wide
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.ops._reference.factors import layer_products


@dataclass(frozen=True)
class PartPlan:
    """A block of columns of the table of parts, those of ``parameters`` (indices).

    ``is_layer`` is true for a linear layer that each example goes through once: ``sites`` are then its weight's and, second,
    its bias's. Else they are the sites of one parameter; none where autograd gives its whole gradient.
    """

    parameters: tuple[int, ...]
    sites: tuple[Site, ...]
    layouts: tuple[Layout, ...]
    is_layer: bool = False


def plan_parts(plan: ActivationPlan, layouts: Sequence[Layout]) -> list[PartPlan]:
    """Plans the parts of all parameters that are used."""
    layout_of = dict(zip(plan.all_sites, layouts, strict=True))
    parts = _layers(plan, layout_of)
    done = {parameter for part in parts for parameter in part.parameters}
    for parameter, sites in plan.sites.items():
        if parameter not in done:
            layouts_here = tuple(layout_of[site] for site in sites)
            parts.append(PartPlan((parameter,), tuple(sites), layouts_here))
    return parts + [PartPlan((parameter,), (), ()) for parameter in plan.indirect]


def _layers(plan: ActivationPlan, layout_of: dict[Site, Layout]) -> list[PartPlan]:
    """Plans the parts of weights, with their bias, of linear layers whose rows are the examples, used once."""
    single = [
        sites[0]
        for sites in plan.sites.values()
        if len(sites) == 1 and layout_of[sites[0]].style == "axis" and layout_of[sites[0]].axis == 0
    ]
    bias_at = {site.node: site for site in single if site.role == "broadcast" and site.is_bias}
    parts = []
    for weight in sorted(single, key=lambda site: site.parameter):
        if weight.role == "weight":
            bias = bias_at.get(weight.node)
            sites = (weight,) if bias is None else (weight, bias)
            owners = tuple(site.parameter for site in sites)
            parts.append(PartPlan(owners, sites, tuple(layout_of[s] for s in sites), is_layer=True))
    return parts


if TYPE_CHECKING:
    from metacurv.estimators.activation.examine import Examined


# Maps cotangents to a block of columns, float64 [R, parameters of the part]; None where no path leads there.
Part = Callable[[Cotangents, Cotangents], Tensor | None]


class Parts:
    """The parts of all parameters, in one table.

    Args:
        walk: the walk over this very graph.
        examined: what is known about such graphs.
        parameters: all parameters to be measured.
    """

    def __init__(
        self,
        walk: Walk,
        examined: Examined,
        parameters: Sequence[NumberedParameter],
    ) -> None:
        self._size = len(parameters)
        self._slot = {node: slot for slot, node in enumerate(examined.plan.site_nodes)}
        self._parts: list[tuple[tuple[int, ...], Part]] = []
        slot = len(self._slot)
        for part in examined.part_plans:
            if part.is_layer:
                made = self._layer(walk, part)
            elif part.sites:
                made = self._single(walk, part, parameters[part.parameters[0]].tensor)
            else:
                made = _of_gradients(slot)
                slot += 1
            self._parts.append((part.parameters, made))
        order = [p for owners, _ in self._parts for p in owners]
        self._order = None if order == list(range(self._size)) else order

    def table(self, of_u: Cotangents, of_w: Cotangents) -> Tensor:
        """Maps cotangents at ``plan.site_nodes`` and gradients of ``plan.indirect`` to float64 [R, parameters]."""
        rows, device = next((len(u), u.device) for u in of_u if u is not None)
        blocks = []
        for owners, part in self._parts:
            block = part(of_u, of_w)
            if block is None:
                shape = (rows, len(owners))
                block = torch.zeros(shape, dtype=torch.float64, device=device)
            blocks.append(block)
        found = torch.cat(blocks, dim=1)
        if self._order is None:
            return found
        table = torch.zeros(rows, self._size, dtype=torch.float64, device=device)
        table[:, self._order] = found
        return table

    def _layer(self, walk: Walk, part: PartPlan) -> Part:
        # The closure holds no self: a cycle would keep the graph until the collector runs.
        node = part.sites[0].node
        slot = self._slot[node]

        def of(of_u: Cotangents, of_w: Cotangents) -> Tensor | None:
            u, w = of_u[slot], of_w[slot]
            if u is None or w is None:
                return None
            from_u = wide(u)
            a = wide(layer_input(walk, node)).detach()
            both = layer_products(a, from_u, from_u if w is u else wide(w))
            return both if len(part.sites) == 2 else both[:, :1]

        return of

    def _single(self, walk: Walk, part: PartPlan, tensor: Tensor) -> Part:
        uses = [
            (self._slot[site.node], bind(site, walk, layout, tensor))
            for site, layout in zip(part.sites, part.layouts, strict=True)
        ]

        def of(of_u: Cotangents, of_w: Cotangents) -> Tensor | None:
            if len(uses) == 1:
                ((slot, use),) = uses
                u, w = of_u[slot], of_w[slot]
                if u is None or w is None:
                    return None
                from_u = wide(u)
                return use.products(from_u, from_u if w is u else wide(w)).unsqueeze(1)
            summed = _summed(of_u, uses)
            return _dot(summed, summed if of_w is of_u else _summed(of_w, uses))

        return of


def _summed(cotangents: Cotangents, uses: Sequence[tuple[int, Use]]) -> Tensor | None:
    """Sums the per-example gradients of one parameter over all its sites."""
    gradients = [
        use.gradients(wide(g)) for slot, use in uses if (g := cotangents[slot]) is not None
    ]
    if not gradients:
        return None
    if len({gradient.shape[1] for gradient in gradients}) > 1:
        # Where examples are told apart at some sites only, all count as one.
        gradients = [gradient.sum(1, keepdim=True) for gradient in gradients]
    total: Tensor = sum(gradients[1:], start=gradients[0])
    return total


def _of_gradients(slot: int) -> Part:
    return lambda of_u, of_w: _dot(of_u[slot], of_w[slot])


def _dot(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    """Returns the inner products of rows: [R, ...] -> float64 [R, 1]."""
    if x is None or y is None:
        return None
    return (wide(x) * wide(y)).reshape(len(x), -1).sum(1, keepdim=True, dtype=torch.float64)

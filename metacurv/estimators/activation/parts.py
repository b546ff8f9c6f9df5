"""Each parameter's part of the trace, from cotangents at the parameters' sites."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from metacurv.estimators.activation.batch_layout import Layout
from metacurv.estimators.activation.bind import bind
from metacurv.estimators.activation.per_sample_products import row_products
from metacurv.estimators.activation.plan import ActivationPlan
from metacurv.estimators.activation.pull_by_engine import Cotangents
from metacurv.estimators.activation.uses import TiedUse, Use
from metacurv.estimators.graph.sites import Site
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.numerics import wide
from metacurv.estimators.problem.parameters import NumberedParameter


@dataclass(frozen=True)
class PartPlan:
    """A block of columns of the table of parts, those of ``parameters`` (indices).

    ``layer`` is the node of a linear layer that each example goes through once; the parameters are then its weight, which is
    [out, in] where it ``is_transposed``, and, second, its bias, if that is measured. Else ``sites`` are those of one parameter;
    none where autograd gives its whole gradient.
    """

    parameters: tuple[int, ...]
    sites: tuple[tuple[Site, Layout], ...] = ()
    layer: int | None = None
    is_transposed: bool = False


def plan_parts(plan: ActivationPlan, layouts: Sequence[Layout]) -> list[PartPlan]:
    """Plans the parts of all parameters that are used."""
    layout_of = dict(zip(plan.all_sites, layouts, strict=True))
    # The sites of parameters that are used once, where the rows are the examples.
    single = [
        sites[0]
        for sites in plan.sites.values()
        if len(sites) == 1 and layout_of[sites[0]].style == "axis" and layout_of[sites[0]].axis == 0
    ]
    biases = {site.node: (site.parameter,) for site in single if site.is_bias}
    parts = [
        PartPlan(
            (weight.parameter, *biases.get(weight.node, ())),
            layer=weight.node,
            is_transposed=weight.is_transposed,
        )
        for weight in sorted(single, key=lambda site: site.parameter)
        if weight.role == "weight"
    ]
    done = {parameter for part in parts for parameter in part.parameters}
    parts += [
        PartPlan((parameter,), tuple((site, layout_of[site]) for site in sites))
        for parameter, sites in plan.sites.items()
        if parameter not in done
    ]
    return parts + [PartPlan((parameter,)) for parameter in plan.indirect]


# Maps cotangents to a block of columns, [R, examples, parameters of the part], one example where they are not told apart; None
# where no path leads there.
Part = Callable[[Cotangents, Cotangents], Tensor | None]


class Parts:
    """The parts of all parameters, in one table, from the cotangents at ``nodes`` and the gradients of indirect parameters."""

    def __init__(
        self,
        walk: Walk,
        plans: Sequence[PartPlan],
        nodes: Sequence[int],
        parameters: Sequence[NumberedParameter],
    ) -> None:
        self._size = len(parameters)
        self._parts: list[Part] = []
        slots = {node: slot for slot, node in enumerate(nodes)}
        indirect = itertools.count(len(slots))
        for plan in plans:
            if plan.layer is not None:
                slot, has_bias = slots[plan.layer], len(plan.parameters) == 2
                made = _of_layer(walk, plan.layer, slot, has_bias=has_bias)
            elif plan.sites:
                tensor = parameters[plan.parameters[0]].tensor
                uses = [(slots[s.node], bind(s, walk, layout, tensor)) for s, layout in plan.sites]
                made = _of_uses(uses)
            else:
                made = _of_gradients(next(indirect))
            self._parts.append(made)
        self._owners = [plan.parameters for plan in plans]
        order = list(itertools.chain(*self._owners))
        self._order = None if order == list(range(self._size)) else order

    def table(self, of_u: Cotangents, of_w: Cotangents) -> Tensor:
        """Returns the sums over examples, float64 [R, parameters]."""
        draws, device = next((len(u), u.device) for u in of_u if u is not None)
        blocks = []
        for owners, part in zip(self._owners, self._parts, strict=True):
            block = part(of_u, of_w)
            if block is None:
                blocks.append(torch.zeros(draws, len(owners), dtype=torch.float64, device=device))
            else:
                blocks.append(block.sum(1, dtype=torch.float64))
        return self._by_parameter(torch.cat(blocks, dim=1))

    def rows(self, of_u: Cotangents, of_w: Cotangents, examples: int) -> Tensor:
        """Returns float64 [R, 1 + examples, parameters]: parts in which no example is told apart, and each example's parts."""
        draws, device = next((len(u), u.device) for u in of_u if u is not None)
        blocks = []
        for owners, part in zip(self._owners, self._parts, strict=True):
            size = (draws, 1 + examples, len(owners))
            block = part(of_u, of_w)
            if block is None:
                rows = torch.zeros(size, dtype=torch.float64, device=device)
            elif block.shape[1] == examples > 1:
                rows = pad(block.double(), (0, 0, 1, 0))
            else:
                rows = pad(block.double(), (0, 0, 0, examples))
            blocks.append(rows)
        return self._by_parameter(torch.cat(blocks, dim=2))

    def _by_parameter(self, found: Tensor) -> Tensor:
        """Puts the columns of the blocks, one after another, in the order of the parameters; 0 for those without a block."""
        if self._order is None:
            return found
        table = found.new_zeros(*found.shape[:-1], self._size)
        table[..., self._order] = found
        return table


def _of_layer(walk: Walk, node: int, slot: int, *, has_bias: bool) -> Part:
    def of(of_u: Cotangents, of_w: Cotangents) -> Tensor | None:
        u, w = of_u[slot], of_w[slot]
        if u is None or w is None:
            return None
        from_u = wide(u)
        a = wide(walk.layer_input(node)).detach()
        of_bias = row_products(from_u, from_u if w is u else wide(w))
        of_weight = of_bias * row_products(a, a)
        return torch.stack([of_weight, of_bias] if has_bias else [of_weight], dim=-1)

    return of


def _of_uses(uses: Sequence[tuple[int, Use]]) -> Part:
    tied = TiedUse.of([use for _, use in uses])

    def of(of_u: Cotangents, of_w: Cotangents) -> Tensor | None:
        if len(uses) == 1:
            ((slot, use),) = uses
            u, w = of_u[slot], of_w[slot]
            if u is None or w is None:
                return None
            from_u = wide(u)
            return use.products(from_u, from_u if w is u else wide(w)).unsqueeze(-1)
        if tied is not None:
            use, head, lookup = tied
            slots = uses[head][0], uses[lookup][0]
            pairs = [_pair(cotangents, *slots) for cotangents in (of_u, of_w)]
            if pairs[0] is not None and pairs[1] is not None:
                others = pairs[0] if of_w is of_u else pairs[1]
                return use.pair_products(pairs[0], others).unsqueeze(-1)
        summed = _summed(of_u, uses)
        return _dot(summed, summed if of_w is of_u else _summed(of_w, uses), lead=2)

    return of


def _pair(cotangents: Cotangents, one: int, other: int) -> tuple[Tensor, Tensor] | None:
    first, second = cotangents[one], cotangents[other]
    return None if first is None or second is None else (wide(first), wide(second))


def _summed(cotangents: Cotangents, uses: Sequence[tuple[int, Use]]) -> Tensor | None:
    """Sums the per-example gradients of one parameter over all its sites."""
    known = [(g, use) for slot, use in uses if (g := cotangents[slot]) is not None]
    return summed_gradients(known) if known else None


def summed_gradients(uses: Sequence[tuple[Tensor, Use]]) -> Tensor:
    """Sums the per-example gradients of one parameter, [R, examples, *its shape], from the cotangents at each of its uses."""
    gradients = [use.gradients(wide(g)) for g, use in uses]
    if len({gradient.shape[1] for gradient in gradients}) > 1:
        # Where examples are told apart at some sites only, all count as one.
        gradients = [gradient.sum(1, keepdim=True) for gradient in gradients]
    total: Tensor = sum(gradients[1:], start=gradients[0])
    return total


def _of_gradients(slot: int) -> Part:
    def of(of_u: Cotangents, of_w: Cotangents) -> Tensor | None:
        found = _dot(of_u[slot], of_w[slot], lead=1)
        return None if found is None else found.unsqueeze(1)

    return of


def _dot(x: Tensor | None, y: Tensor | None, lead: int) -> Tensor | None:
    """Returns the inner products of rows: [*lead, ...] -> float64 [*lead, 1]."""
    if x is None or y is None:
        return None
    products = (wide(x) * wide(y)).reshape(*x.shape[:lead], -1)
    return products.sum(-1, keepdim=True, dtype=torch.float64)

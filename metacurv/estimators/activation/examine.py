"""Examines a model's graph once for each structure: what activation space can do with it, checked against autograd.

Two things are tested with a random cotangent on the first graph of a structure, since they cannot be read off it with
certainty: that the gradients which the sites give add up to autograd's own (a parameter for which they do not is left to
autograd), and which axis of each activation holds the examples (the cotangent that flows back to an example must scale with
that example's own cotangent at the output, and with no other).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv.estimators.activation.batch_layout import (
    WHOLE,
    Layout,
    candidates,
    follows_scaling,
    keeps_apart,
    scalings,
    separating_sets,
)
from metacurv.estimators.activation.batch_separation import keeps_samples
from metacurv.estimators.activation.bind import bind
from metacurv.estimators.activation.loss_factor import GenericFactor
from metacurv.estimators.activation.parts import PartPlan, plan_parts
from metacurv.estimators.activation.plan import (
    ActivationPlan,
    NotInActivationSpace,
    make_plan,
    softmax_dim,
)
from metacurv.estimators.activation.pull_many import PullPlan, leading_to_sites, plan_pull
from metacurv.estimators.graph.sites import Site
from metacurv.estimators.graph.torch_private import output_of, run_backward
from metacurv.estimators.graph.walk import Walk, walk_graph
from metacurv.estimators.problem.elsewhere import Again
from metacurv.estimators.problem.errors import refuse_reentrant_checkpoints
from metacurv.estimators.problem.numerics import wide_dtype
from metacurv.estimators.problem.parameters import NumberedParameter

_KEPT = 64
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Examined:
    """A plan with the layouts of its sites, and the plan for pulling several cotangents at once, if they can be.

    ``apart``: the number of examples that share a column of the loss's factor, 1 where they cannot be told apart. ``columns``:
    the number of columns of the exact trace, a backward pass to the layers each. ``elements``: the size of a cotangent at the
    boundary and at all sites. ``is_sure``: True where all of it holds for every graph of this structure, and not just for these
    values.
    """

    plan: ActivationPlan
    layouts: list[Layout]
    apart: int
    columns: int
    pull: PullPlan | None
    elements: int
    is_sure: bool

    @cached_property
    def part_plans(self) -> list[PartPlan]:
        """The plans that put the sites together to parts of the trace."""
        return plan_parts(self.plan, self.layouts)


_examined: OrderedDict[Hashable, Examined | NotInActivationSpace] = OrderedDict()


def examine(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    output: GradientEdge | None,
    samples: int,
    kind: str,
    again: Again | None = None,
) -> tuple[Walk, Examined]:
    """Returns the walk over this graph, and what is known about graphs like it.

    Args:
        loss: one element, with a graph.
        parameters: all parameters to be measured.
        output: where the gradient in the model's output arrives, if that is one tensor.
        samples: the number of examples in the batch.
        kind: "hessian" or "ggn".
        again: computes the same graph elsewhere; None where nobody can.

    Raises:
        NotInActivationSpace: activation space does not serve this graph; the message is the reason.
    """
    assert loss.grad_fn is not None  # check_loss saw to it
    walk = walk_graph(loss.grad_fn, parameters, again)
    refuse_reentrant_checkpoints(walk.names)
    place = _place(walk, output)
    key = (walk.key, place, samples, kind, loss.device, tuple(p.tensor.dtype for p in parameters))
    known = _examined.get(key)
    if known is None:
        try:
            known = _examine(loss, walk, parameters, place, samples, kind)
        except NotInActivationSpace as reason:
            known = NotInActivationSpace(*reason.args)  # without a traceback, which holds the graph
        if not isinstance(known, Examined) or known.is_sure:
            _examined[key] = known
        if len(_examined) > _KEPT:
            _examined.popitem(last=False)
    else:
        _examined.move_to_end(key)
    if isinstance(known, NotInActivationSpace):
        raise NotInActivationSpace(*known.args)
    return walk, known


def _place(walk: Walk, output: GradientEdge | None) -> tuple[int, int] | None:
    if output is not None:
        for index, node in enumerate(walk.nodes):
            if node is output.node:
                return index, output.output_nr
    return None


def _examine(
    loss: Tensor,
    walk: Walk,
    parameters: Sequence[NumberedParameter],
    place: tuple[int, int] | None,
    samples: int,
    kind: str,
) -> Examined:
    plan = make_plan(walk, parameters, place, kind)
    if plan.sites:
        plan = _without_disagreeing(walk, plan, parameters)
    found = _find_layouts(loss, walk, plan, samples)
    places = [plan.head.boundary, *((node, 0) for node in plan.site_nodes)]
    elements = sum(math.prod(walk.shape(*place)) for place in places)
    # The gradients of a parameter with several places are formed, one for each example.
    elements += sum(
        samples * parameters[parameter].tensor.numel()
        for parameter, known in plan.sites.items()
        if len(known) > 1
    )
    is_in_blocks = found.boundary.style == "major" or found.boundary == Layout("axis", samples)
    # Columns are built with the examples along the first axis.
    apart = samples if is_in_blocks and not found.unknown and not plan.indirect else 1
    columns = math.prod(walk.shape(*plan.head.boundary)) // max(1, apart)
    if plan.head.kind == "softmax":
        classes = walk.shape(plan.head.node)[softmax_dim(walk, plan.head.node)]
        columns = columns // classes * (classes - 1)
    return Examined(
        plan=plan,
        layouts=found.sites,
        apart=apart,
        columns=columns,
        pull=plan_pull(walk, plan),
        elements=elements,
        is_sure=found.is_sure,
    )


def _random(walk: Walk, plan: ActivationPlan, generator: torch.Generator) -> Tensor:
    """Returns a random cotangent at the boundary."""
    node, output = plan.head.boundary
    metadata = output_of(walk.nodes[node], output)
    numbers = torch.randn(tuple(metadata.shape), generator=generator, dtype=torch.float64)
    return numbers.to(metadata.device, metadata.dtype)


def _without_disagreeing(
    walk: Walk, plan: ActivationPlan, parameters: Sequence[NumberedParameter]
) -> ActivationPlan:
    """Returns the plan with those parameters made indirect whose gradient the sites get wrong."""
    cotangent = _random(walk, plan, torch.Generator().manual_seed(1))
    sites = plan.all_sites
    used = list(plan.sites)
    found = run_backward(
        [walk.edge(*plan.head.boundary)],
        [*(walk.edge(site.node) for site in sites), *(parameters[p].tensor for p in used)],
        [cotangent],
    )
    arrived = dict(zip(((s.node, s.parameter) for s in sites), found[: len(sites)], strict=True))
    wrong: set[int] = set()
    for parameter, truth in zip(used, found[len(sites) :], strict=True):
        tensor = parameters[parameter].tensor
        total = torch.zeros(
            tensor.shape,
            dtype=wide_dtype(tensor.dtype),
            device=tensor.device,
        )
        for site in plan.sites[parameter]:
            u = arrived[site.node, site.parameter]
            if u is not None:
                use = bind(site, walk, WHOLE, tensor)
                total += use.gradients(u.to(total.dtype).unsqueeze(0)).view(tensor.shape)
        expected = torch.zeros_like(total) if truth is None else truth.to_dense().to(total.dtype)
        error = (total - expected).norm()
        if not bool(error <= _TOLERANCE[tensor.dtype] * expected.norm()):
            wrong.add(parameter)
    if not wrong:
        return plan
    return replace(
        plan,
        sites={p: known for p, known in plan.sites.items() if p not in wrong},
        indirect=sorted({*plan.indirect, *wrong}),
    )


@dataclass(frozen=True)
class _Layouts:
    """The layouts of the boundary and of each site.

    ``is_sure`` is false where nothing flowed, so that nothing could be seen, or where values decide which examples meet.
    """

    boundary: Layout
    sites: list[Layout]
    is_sure: bool = True

    @property
    def unknown(self) -> int:
        return sum(layout.style == "whole" for layout in self.sites)


def _find_layouts(loss: Tensor, walk: Walk, plan: ActivationPlan, samples: int) -> _Layouts:
    """Finds the layouts; they are WHOLE where examples interact or no axis fits."""
    sites = plan.all_sites
    best = _Layouts(WHOLE, [WHOLE] * len(sites))
    if samples == 1 or not sites:
        return best
    full = _random(walk, plan, torch.Generator().manual_seed(2))
    for boundary in candidates(tuple(full.shape), samples):
        if (
            plan.head.kind == "softmax"
            and boundary.axis == softmax_dim(walk, plan.head.node) % full.dim()
        ):
            continue  # the loss itself couples the entries along its classes
        found = _layouts_from(loss, walk, plan, full, boundary)
        if found is None:  # the loss itself couples examples
            return best
        if found.unknown < best.unknown or not found.is_sure:
            best = found
        if not best.unknown or not best.is_sure:
            break
    return best


def _layouts_from(
    loss: Tensor, walk: Walk, plan: ActivationPlan, full: Tensor, boundary: Layout
) -> _Layouts | None:
    """Finds the layouts of the sites if ``boundary`` is that of ``full``, a cotangent at the boundary."""
    sites = plan.all_sites
    possible = [
        [
            layout
            for layout in candidates(walk.shape(site.node), boundary.samples)
            if _may_hold_samples(site, walk, layout)
        ]
        for site in sites
    ]
    is_sure = plan.head.kind != "generic" and not plan.indirect
    is_sure = is_sure and all(
        keeps_samples(walk, node, boundary.samples) for node in leading_to_sites(walk, plan)
    )
    if plan.head.kind == "generic" and not _loss_keeps_apart(loss, walk, plan, full, boundary):
        return None
    reference = _arrived(walk, plan, full)
    is_sure &= all(u is None or bool(torch.count_nonzero(u)) for u in reference)
    for scales in scalings(boundary.samples, full.dtype):
        here = scales.to(full.device)
        cotangent = full.clone()
        brought = boundary.bring(cotangent)
        brought.mul_(here.view(-1, *([1] * (brought.dim() - 1))))
        for i, (before, u) in enumerate(
            zip(reference, _arrived(walk, plan, cotangent), strict=True)
        ):
            if before is None or u is None or not bool(torch.count_nonzero(before)):
                possible[i] = []
                continue
            possible[i] = [
                layout for layout in possible[i] if follows_scaling(layout, u, before, here)
            ]
    found = [fit[0] if fit else WHOLE for fit in possible]
    in_front = all(layout.axis == 0 and layout.style != "minor" for layout in (boundary, *found))
    return _Layouts(boundary, found, is_sure and in_front)


def _arrived(walk: Walk, plan: ActivationPlan, cotangent: Tensor) -> Sequence[Tensor | None]:
    """Returns the cotangents that flow back to the sites from a cotangent at the boundary."""
    edges = [walk.edge(site.node) for site in plan.all_sites]
    return run_backward([walk.edge(*plan.head.boundary)], edges, [cotangent])


def _loss_keeps_apart(
    loss: Tensor, walk: Walk, plan: ActivationPlan, full: Tensor, boundary: Layout
) -> bool:
    """Tells whether a loss of no known form passes nothing between examples."""
    factor = GenericFactor(loss, walk.edge(*plan.head.boundary), full, boundary.samples, walk.again)
    for chosen in separating_sets(boundary.samples):
        here = chosen.to(full.device)
        mask = torch.zeros_like(full)
        boundary.bring(mask)[here] = 1
        if not keeps_apart(boundary, factor.times_hessian(full * mask), here):
            return False
    return True


def _may_hold_samples(site: Site, walk: Walk, layout: Layout) -> bool:
    """Tells whether examples can lie along that axis at this kind of site, the parameter being the same for all of them."""
    if layout.axis >= site.sample_axes(walk):
        return False
    return site.role != "broadcast" or site.sizes(walk)[layout.axis] == 1

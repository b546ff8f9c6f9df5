"""Examines a model's graph once for each structure: what activation space can do with it, checked against autograd.

Two things are tested with a random cotangent on the first graph of a structure, since they cannot be read off it with
certainty: that the gradients which the sites give add up to autograd's own (a parameter for which they do not is left to
autograd), and which axis of each activation holds the examples (``find_layouts``).
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv.estimators.activation.batch_layout import WHOLE, Layout
from metacurv.estimators.activation.bind import bind
from metacurv.estimators.activation.find_layouts import find_layouts, random_cotangent
from metacurv.estimators.activation.parts import PartPlan, plan_parts
from metacurv.estimators.activation.plan import (
    ActivationPlan,
    NotInActivationSpace,
    make_plan,
    softmax_dim,
)
from metacurv.estimators.activation.pull_many import PullStep, plan_pull
from metacurv.estimators.graph.sites import Site
from metacurv.estimators.graph.torch_private import run_backward
from metacurv.estimators.graph.walk import Walk, walk_graph
from metacurv.estimators.problem.elsewhere import Again
from metacurv.estimators.problem.errors import refuse_reentrant_checkpoints
from metacurv.estimators.problem.numerics import wide_dtype
from metacurv.estimators.problem.parameters import NumberedParameter

_KEPT = 64
_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 2e-1}


@dataclass(frozen=True)
class Examined:
    """A plan with those of the parts of the trace, and of pulling several cotangents at once, if they can be.

    ``apart``: the number of examples that share a column of the loss's factor, 1 where they cannot be told apart. ``columns``:
    the number of columns of the exact trace, a backward pass to the layers each. ``elements``: the size of a cotangent at the
    boundary and at all sites. ``is_sure``: True where all of it holds for every graph of this structure, and not just for these
    values. ``boundary`` and ``layouts``: where the examples are, at the boundary and at each site.
    """

    plan: ActivationPlan
    apart: int
    columns: int
    pull: list[PullStep] | None
    elements: int
    is_sure: bool
    part_plans: list[PartPlan]
    boundary: Layout
    layouts: dict[Site, Layout]


_examined: OrderedDict[Hashable, Examined | NotInActivationSpace] = OrderedDict()


def examine(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    output: GradientEdge | None,
    examples: int,
    kind: str,
    again: Again | None = None,
) -> tuple[Walk, Examined]:
    """Returns the walk over this graph, and what is known about graphs like it.

    Args:
        loss: one element, with a graph.
        parameters: all parameters to be measured.
        output: where the gradient in the model's output arrives, if that is one tensor.
        examples: the number of examples in the batch.
        kind: "hessian" or "ggn".
        again: computes the same graph elsewhere; None where nobody can.

    Raises:
        NotInActivationSpace: activation space does not serve this graph; the message is the reason.
    """
    assert loss.grad_fn is not None  # check_loss saw to it
    walk = walk_graph(loss.grad_fn, parameters, again)
    refuse_reentrant_checkpoints(walk.names)
    place = None
    if output is not None and output.node in walk.nodes:
        place = walk.nodes.index(output.node), output.output_nr
    key = (walk.key, place, examples, kind, loss.device, tuple(p.tensor.dtype for p in parameters))
    known = _examined.get(key)
    if known is None:
        try:
            known = _examine(loss, walk, parameters, place, examples, kind)
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


def _examine(
    loss: Tensor,
    walk: Walk,
    parameters: Sequence[NumberedParameter],
    place: tuple[int, int] | None,
    examples: int,
    kind: str,
) -> Examined:
    plan = make_plan(walk, parameters, place, kind)
    if plan.sites:
        plan = _without_disagreeing(walk, plan, parameters)
    found = find_layouts(loss, walk, plan, examples)
    places = [plan.head.boundary, *((node, 0) for node in plan.site_nodes)]
    elements = sum(math.prod(walk.shape(*place)) for place in places)
    # The gradients of a parameter with several places are formed, one for each example.
    elements += sum(
        examples * parameters[parameter].tensor.numel()
        for parameter, known in plan.sites.items()
        if len(known) > 1
    )
    is_in_blocks = found.boundary.style == "major" or found.boundary == Layout("axis", examples)
    # Columns are built with the examples along the first axis.
    apart = examples if is_in_blocks and not found.unknown and not plan.indirect else 1
    columns = math.prod(walk.shape(*plan.head.boundary)) // max(1, apart)
    if plan.head.kind == "softmax":
        classes = walk.shape(plan.head.node)[softmax_dim(walk, plan.head.node)]
        columns = columns // classes * (classes - 1)
    return Examined(
        plan=plan,
        apart=apart,
        columns=columns,
        pull=plan_pull(walk, plan),
        elements=elements,
        is_sure=found.is_sure,
        part_plans=plan_parts(plan, found.sites),
        boundary=found.boundary,
        layouts=dict(zip(plan.all_sites, found.sites, strict=True)),
    )


def _without_disagreeing(
    walk: Walk, plan: ActivationPlan, parameters: Sequence[NumberedParameter]
) -> ActivationPlan:
    """Returns the plan with those parameters made indirect whose gradient the sites get wrong."""
    cotangent = random_cotangent(walk, plan, seed=1)
    sites = plan.all_sites
    used = list(plan.sites)
    found = run_backward(
        [walk.edge(*plan.head.boundary)],
        [*(walk.edge(site.node) for site in sites), *(parameters[p].tensor for p in used)],
        [cotangent],
    )
    arrived = dict(zip(sites, found[: len(sites)], strict=True))
    wrong: set[int] = set()
    for parameter, truth in zip(used, found[len(sites) :], strict=True):
        tensor = parameters[parameter].tensor
        dtype = wide_dtype(tensor.dtype)
        total = torch.zeros(tensor.shape, dtype=dtype, device=tensor.device)
        for site in plan.sites[parameter]:
            u = arrived[site]
            if u is not None:
                use = bind(site, walk, WHOLE, tensor)
                total += use.gradients(u.to(dtype).unsqueeze(0)).view(tensor.shape)
        expected = torch.zeros_like(total) if truth is None else truth.to_dense().to(dtype)
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

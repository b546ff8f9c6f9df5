"""Finds which axis of each activation holds the examples.

That cannot be read off the graph with certainty, so it is tested with a random cotangent: the cotangent that flows back to an
example must scale with that example's own cotangent at the output, and with no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.activation.batch_layout import (
    WHOLE,
    Layout,
    candidates,
    follows_scaling,
    keeps_apart,
    scalings,
    separating_sets,
)
from metacurv.estimators.activation.batch_separation import stay_apart
from metacurv.estimators.activation.loss_factor import GenericFactor
from metacurv.estimators.activation.plan import ActivationPlan, softmax_dim
from metacurv.estimators.activation.pull_many import leading_to_sites
from metacurv.estimators.graph.sites import Site
from metacurv.estimators.graph.torch_private import output_of, run_backward
from metacurv.estimators.graph.walk import Walk


@dataclass(frozen=True)
class Layouts:
    """The layouts of the boundary and of each site.

    ``is_sure`` is false where nothing flowed, so that nothing could be seen, or where values decide which examples meet.
    """

    boundary: Layout
    sites: list[Layout]
    is_sure: bool = True

    @property
    def unknown(self) -> int:
        """The number of sites where all examples count as one."""
        return self.sites.count(WHOLE)


def find_layouts(loss: Tensor, walk: Walk, plan: ActivationPlan, examples: int) -> Layouts:
    """Finds the layouts; they are WHOLE where examples interact or no axis fits."""
    best = Layouts(WHOLE, [WHOLE] * len(plan.all_sites))
    if examples == 1 or not plan.all_sites:
        return best
    full = random_cotangent(walk, plan, seed=2)
    # The loss itself couples the entries along its classes.
    is_softmax = plan.head.kind == "softmax"
    coupled = softmax_dim(walk, plan.head.node) % full.dim() if is_softmax else None
    for boundary in candidates(tuple(full.shape), examples):
        if boundary.axis == coupled:
            continue
        found = _layouts_from(loss, walk, plan, full, boundary)
        if found is None:  # the loss itself couples examples
            return best
        if found.unknown < best.unknown or (best.is_sure and not found.is_sure):
            best = found
        is_some_use = best.unknown < len(best.sites)
        if not best.unknown or (is_some_use and not best.is_sure):
            break
    return best


def random_cotangent(walk: Walk, plan: ActivationPlan, seed: int) -> Tensor:
    """Returns a random cotangent at the boundary."""
    node, output = plan.head.boundary
    metadata = output_of(walk.nodes[node], output)
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.randn(tuple(metadata.shape), generator=generator, dtype=torch.float64)
    return numbers.to(metadata.device, metadata.dtype)


def _layouts_from(
    loss: Tensor, walk: Walk, plan: ActivationPlan, full: Tensor, boundary: Layout
) -> Layouts | None:
    """Finds the layouts of the sites if ``boundary`` is that of ``full``, a cotangent at the boundary."""
    examples = boundary.examples
    is_generic = plan.head.kind == "generic"
    if is_generic and not _loss_keeps_apart(loss, walk, plan, full, boundary):
        return None
    reference = _arrived(walk, plan, full)
    flows = [u is not None and bool(torch.count_nonzero(u)) for u in reference]
    possible = [
        [
            layout
            for layout in candidates(walk.shape(site.node), examples)
            if flow and _may_hold_examples(site, walk, layout)
        ]
        for site, flow in zip(plan.all_sites, flows, strict=True)
    ]
    for scales in scalings(examples, full.dtype):
        here = scales.to(full.device)
        cotangent = full.clone()
        brought = boundary.bring(cotangent)
        brought.mul_(here.view(-1, *([1] * (brought.dim() - 1))))
        arrived = _arrived(walk, plan, cotangent)
        possible = [
            [
                layout
                for layout in fit
                if u is not None and before is not None and follows_scaling(layout, u, before, here)
            ]
            for fit, u, before in zip(possible, arrived, reference, strict=True)
        ]
    found = [fit[0] if fit else WHOLE for fit in possible]
    is_sure = (
        not is_generic
        and not plan.indirect
        and all(flow or u is None for flow, u in zip(flows, reference, strict=True))
        and stay_apart(
            walk,
            (plan.head.boundary[0], boundary),
            leading_to_sites(walk, plan),
            zip((site.node for site in plan.all_sites), found, strict=True),
        )
    )
    return Layouts(boundary, found, is_sure)


def _arrived(walk: Walk, plan: ActivationPlan, cotangent: Tensor) -> Sequence[Tensor | None]:
    """Returns the cotangents that flow back to the sites from a cotangent at the boundary."""
    edges = [walk.edge(site.node) for site in plan.all_sites]
    return run_backward([walk.edge(*plan.head.boundary)], edges, [cotangent])


def _loss_keeps_apart(
    loss: Tensor, walk: Walk, plan: ActivationPlan, full: Tensor, boundary: Layout
) -> bool:
    """Tells whether a loss of no known form passes nothing between examples."""
    edge = walk.edge(*plan.head.boundary)
    factor = GenericFactor(loss, edge, full, boundary.examples, walk.again)
    for chosen in separating_sets(boundary.examples):
        here = chosen.to(full.device)
        mask = torch.zeros_like(full)
        boundary.bring(mask)[here] = 1
        if not keeps_apart(boundary, factor.times_hessian(full * mask), here):
            return False
    return True


def _may_hold_examples(site: Site, walk: Walk, layout: Layout) -> bool:
    """Tells whether examples can lie along that axis at this kind of site, the parameter being the same for all of them."""
    if layout.axis >= site.example_axes(walk):
        return False
    return site.role != "broadcast" or site.sizes(walk)[layout.axis] == 1

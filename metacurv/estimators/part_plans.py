"""Plans of how the sites of parameters make parts of the trace: structure only, shared by all graphs of the same structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metacurv.estimators.activation_plan import ActivationPlan
from metacurv.estimators.sample_layout import Layout
from metacurv.estimators.use_sites import Site


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

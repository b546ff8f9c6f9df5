"""How the places of parameters are put together to parts of the trace: structure only, the same for all graphs alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from metacurv.estimators.activation_plan import ActivationPlan
from metacurv.estimators.sample_layout import Layout
from metacurv.estimators.use_sites import Site


@dataclass(frozen=True)
class PartPlan:
    """A block of columns: the parts of ``parameters`` (indices).

    ``is_layer``: a linear layer that each sample goes through once: ``sites`` are its weight's and, second, its bias's.
    Else the sites of one parameter; none where its whole gradient is asked of autograd.
    """

    parameters: tuple[int, ...]
    sites: tuple[Site, ...]
    layouts: tuple[Layout, ...]
    is_layer: bool = False


def plan_parts(plan: ActivationPlan, layouts: Sequence[Layout]) -> list[PartPlan]:
    """Of all parameters that are used."""
    layout_of = dict(zip(plan.all_sites, layouts, strict=True))
    parts = _layers(plan, layout_of)
    done = {parameter for part in parts for parameter in part.parameters}
    for parameter, sites in plan.sites.items():
        if parameter not in done:
            layouts_here = tuple(layout_of[site] for site in sites)
            parts.append(PartPlan((parameter,), tuple(sites), layouts_here))
    return parts + [PartPlan((parameter,), (), ()) for parameter in plan.indirect]


def _layers(plan: ActivationPlan, layout_of: dict[Site, Layout]) -> list[PartPlan]:
    """Weights, with their bias, of linear layers whose rows are the samples, used once."""
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

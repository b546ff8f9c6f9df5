"""Binds the sites of parameters to the tensors of one graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metacurv.estimators.activation.batch_layout import Layout
from metacurv.estimators.activation.uses import (
    BroadcastUse,
    ConvolutionUse,
    EmbeddingUse,
    Use,
    WeightUse,
)
from metacurv.estimators.graph.node_kinds import NORMS
from metacurv.estimators.graph.sites import Site
from metacurv.estimators.graph.torch_private import output_of, saved
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.numerics import wide
from metacurv.ops._reference.scalars import scalar


def bind(site: Site, walk: Walk, layout: Layout, parameter: Tensor) -> Use:
    """Binds a site to this very graph: the use of the parameter, from the tensors that its node saved."""
    node, shape = walk.nodes[site.node], tuple(parameter.shape)
    if site.role == "weight":
        a = wide(walk.layer_input(site.node)).detach()
        return WeightUse(a, layout, shape, transposed=site.is_transposed)
    if site.role == "convolution":
        return ConvolutionUse(node, layout, shape)
    if site.role == "embedding":
        return EmbeddingUse(walk.nodes[site.lookup], layout, shape, walk.shape(site.node)[:-1])
    assert site.role == "broadcast", f"no use for {site.role}"  # a new role needs a use here
    factor = _factor(site, walk)
    wide_factor = None if factor is None else wide(factor)
    return BroadcastUse(wide_factor, layout, sizes=site.sizes(walk), shape=shape)


def _factor(site: Site, walk: Walk) -> Tensor | None:
    """Returns dz / d theta of a broadcast parameter; None where it is 1."""
    at: Any = walk.nodes[site.node]
    name = walk.names[site.node]
    if name in NORMS:
        return _normalised(name, at) if site.position == 1 else None
    if name == "MulBackward0":
        factor: Tensor = saved(at, "other") if site.position == 0 else saved(at, "self")
        return factor
    if name == "PreluKernelBackward0":
        slope: Tensor = saved(at, "self").clamp(max=0)
        return slope
    if name in ("AddmmBackward0", "ConvolutionBackward0", "ExpandBackward0"):
        return None  # a bias, or what is the same for all examples
    assert name in ("AddBackward0", "SubBackward0"), f"no factor for {name}"
    alpha = 1
    if site.position:
        alpha = saved(at, "alpha") if name == "AddBackward0" else -saved(at, "alpha")
    if alpha == 1:
        return None
    return scalar(float(alpha), torch.get_default_dtype(), output_of(at).device)


def _normalised(name: str, at: Any) -> Tensor:
    """Returns (x - mean) / deviation, the input of a norm's scale."""
    x = wide(saved(at, "input"))
    if name == "NativeLayerNormBackward0":
        return x.sub(saved(at, "result1")).mul_(saved(at, "result2"))
    if name == "NativeGroupNormBackward0":
        n, groups = saved(at, "N"), saved(at, "group")
        grouped = x.reshape(n, groups, -1)
        mean, rstd = saved(at, "result1"), saved(at, "result2")
        scaled: Tensor = (grouped - mean.view(n, groups, 1)) * rstd.view(n, groups, 1)
        return scaled.view(x.shape)
    channels = [1, -1, *([1] * (x.dim() - 2))]
    mean, variance = saved(at, "running_mean"), saved(at, "running_var")
    normalised: Tensor = x.sub(mean.view(channels)).mul_(
        (variance + saved(at, "eps")).rsqrt().view(channels)
    )
    return normalised

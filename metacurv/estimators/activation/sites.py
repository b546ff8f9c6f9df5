"""Finds the places where parameters enter a model (sites), in the graph of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
from metacurv.estimators.graph.node_kinds import RELABELLINGS
from metacurv.estimators.graph.walk import Walk, signed
from metacurv.estimators.problem.numerics import wide
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.ops._reference.scalars import scalar

Role = Literal["weight", "convolution", "embedding", "broadcast"]

_SAME_ORDER = frozenset(
    f"{name}Backward{variant}"
    for name in ("Alias", "ReshapeAlias", "Squeeze", "ToCopy", "UnsafeView", "Unsqueeze", "View")
    for variant in range(3)
)
_TRANSPOSITIONS = frozenset({"TBackward0", "TransposeBackward0", "PermuteBackward0"})
_NORMS = frozenset(
    {"NativeLayerNormBackward0", "NativeGroupNormBackward0", "NativeBatchNormBackward0"}
)


@dataclass(frozen=True)
class Site:
    """One place where a parameter enters: index ``parameter``, at position ``position`` of node ``node``.

    ``view``: the parameter's shape there, before any expansion. ``is_transposed``: True for a matrix that arrives transposed.
    ``path``: nodes between the parameter and that node. ``is_bias``: True for the bias of a linear layer.
    """

    parameter: int
    node: int
    position: int
    role: Role
    view: tuple[int, ...]
    is_transposed: bool
    path: tuple[int, ...]
    is_bias: bool = False

    def sizes(self, walk: Walk) -> list[int]:
        """Returns the parameter's sizes along the axes of z, 1 where it is broadcast."""
        axes = len(walk.shape(self.node))
        name = walk.names[self.node]
        if self.is_along_channels(name):
            return [1, self.view[0], *([1] * (axes - 2))]
        return [1] * (axes - len(self.view)) + list(self.view)

    @staticmethod
    def is_along_channels(name: str) -> bool:
        """Tells whether parameters of such a node belong to axis 1."""
        return name in (
            "ConvolutionBackward0",
            "NativeGroupNormBackward0",
            "NativeBatchNormBackward0",
        )

    def sample_axes(self, walk: Walk) -> int:
        """Returns how many leading axes of z may be that of examples."""
        axes = len(walk.shape(self.node))
        return {"weight": 1, "convolution": 1, "embedding": axes - 1, "broadcast": axes}[self.role]


def find_sites(walk: Walk, parameters: Sequence[NumberedParameter]) -> dict[int, list[Site] | None]:
    """Returns every site of every parameter that is used, by index; None where some place is of no known form."""
    consumers = walk.consumers()
    sites: dict[int, list[Site] | None] = {}
    for leaf, parameter in walk.leaves.items():
        tensor = parameters[parameter].tensor
        found = _sites_above(
            walk, consumers, parameter, leaf, tuple(tensor.shape), transposed=False, path=()
        )
        before = sites.get(parameter, [])
        sites[parameter] = None if found is None or before is None else before + found
    return sites


def _sites_above(
    walk: Walk,
    consumers: list[list[tuple[int, int]]],
    parameter: int,
    node: int,
    view: tuple[int, ...],
    *,
    transposed: bool,
    path: tuple[int, ...],
) -> list[Site] | None:
    """Returns the sites at the consumers of ``node``, which is the parameter in the shape ``view``."""
    found: list[Site] = []
    for above, position in consumers[node]:
        name = walk.names[above]
        if name in RELABELLINGS or name == "ExpandBackward0":
            following = _view_after(walk, name, above, view, transposed=transposed)
            if following is None:
                return None
            more = _sites_above(
                walk,
                consumers,
                parameter,
                above,
                following[0],
                transposed=following[1],
                path=(*path, above),
            )
            if more is None:
                return None
            found += more
            continue
        role = _role(walk, above, position, view, transposed=transposed)
        if role is None:
            return None
        is_bias = name == "AddmmBackward0" and view == walk.shape(above)[1:] and position == 0
        found.append(Site(parameter, above, position, role, view, transposed, path, is_bias))
    return found


def _view_after(
    walk: Walk, name: str, node: int, view: tuple[int, ...], *, transposed: bool
) -> tuple[tuple[int, ...], bool] | None:
    """Returns shape and transposition after a relabelling; None where the order of elements gets lost."""
    shape = walk.shape(node)
    if name == "ExpandBackward0" or name.startswith("Clone"):
        return view, transposed
    if name in _TRANSPOSITIONS:
        if len(view) == 2 and shape == view[::-1]:
            return shape, not transposed
        return None
    if name in _SAME_ORDER and not (transposed and shape != view):
        return shape, transposed
    return None


def _role(
    walk: Walk, node: int, position: int, view: tuple[int, ...], *, transposed: bool
) -> Role | None:
    name = walk.names[node]
    at: Any = walk.nodes[node]
    if name == "AddmmBackward0":
        if at._saved_alpha != 1 or at._saved_beta != 1:
            return None
        if position == 2:
            return "weight"
        return "broadcast" if position == 0 and not transposed else None
    if name == "MmBackward0":
        return "weight" if position == 1 else None
    if transposed:
        return None
    if name == "ConvolutionBackward0":
        return {1: "convolution", 2: "broadcast"}.get(position)  # type: ignore[return-value]
    if name == "EmbeddingBackward0":
        return None if at._saved_scale_grad_by_freq or at._saved_sparse else "embedding"
    if name in _NORMS:
        if name == "NativeBatchNormBackward0" and at._saved_training:
            return None
        return "broadcast" if position in (1, 2) else None
    if name in ("AddBackward0", "SubBackward0", "MulBackward0"):
        return "broadcast"
    if name == "PreluKernelBackward0":
        return "broadcast" if position == 1 else None
    return None


def bind(site: Site, walk: Walk, layout: Layout, parameter: Tensor) -> Use:
    """Binds a site to this very graph: the use of the parameter, from the tensors that its node saved."""
    at: Any = walk.nodes[site.node]
    if site.role == "weight":
        return WeightUse(layer_input(walk, site.node), layout, transposed=site.is_transposed)
    if site.role == "convolution":
        return ConvolutionUse(
            wide(at._saved_input),
            layout,
            weight_shape=tuple(parameter.shape),
            places=walk.shape(site.node)[2:],
            stride=tuple(at._saved_stride),
            padding=tuple(at._saved_padding),
            dilation=tuple(at._saved_dilation),
            groups=at._saved_groups,
            transposed=at._saved_transposed,
        )
    if site.role == "embedding":
        padding = at._saved_padding_idx
        return EmbeddingUse(
            at._saved_indices,
            layout,
            weight_shape=tuple(parameter.shape),
            padding_index=signed(padding),
        )
    factor = _factor(site, walk)
    return BroadcastUse(
        None if factor is None else wide(factor),
        layout,
        sizes=site.sizes(walk),
        shape=tuple(parameter.shape),
    )


def layer_input(walk: Walk, node: int) -> Tensor:
    """Returns a of a matrix product z = a W' + b: [rows, in]."""
    at: Any = walk.nodes[node]
    return wide(at._saved_mat1 if walk.names[node] == "AddmmBackward0" else at._saved_self).detach()


def _factor(site: Site, walk: Walk) -> Tensor | None:
    """Returns dz / d theta of a broadcast parameter; None where it is 1."""
    at: Any = walk.nodes[site.node]
    name = walk.names[site.node]
    if name in _NORMS:
        return _normalised(name, at) if site.position == 1 else None
    if name == "MulBackward0":
        factor: Tensor = at._saved_other if site.position == 0 else at._saved_self
        return factor
    if name == "PreluKernelBackward0":
        slope: Tensor = at._saved_self.clamp(max=0)
        return slope
    alpha = at._saved_alpha if name in ("AddBackward0", "SubBackward0") and site.position else 1
    alpha = -alpha if name == "SubBackward0" and site.position else alpha
    device = walk.nodes[site.node]._input_metadata[0].device
    return None if alpha == 1 else scalar(float(alpha), torch.get_default_dtype(), device)


def _normalised(name: str, at: Any) -> Tensor:
    """Returns (x - mean) / deviation, the input of a norm's scale."""
    x = wide(at._saved_input)
    if name == "NativeLayerNormBackward0":
        return x.sub(at._saved_result1).mul_(at._saved_result2)
    if name == "NativeGroupNormBackward0":
        n, groups = at._saved_N, at._saved_group
        grouped = x.reshape(n, groups, -1)
        mean, rstd = at._saved_result1, at._saved_result2
        scaled: Tensor = (grouped - mean.view(n, groups, 1)) * rstd.view(n, groups, 1)
        return scaled.view(x.shape)
    channels = [1, -1, *([1] * (x.dim() - 2))]
    mean, variance = at._saved_running_mean, at._saved_running_var
    normalised: Tensor = x.sub(mean.view(channels)).mul_(
        (variance + at._saved_eps).rsqrt().view(channels)
    )
    return normalised

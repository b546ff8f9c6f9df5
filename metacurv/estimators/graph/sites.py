"""Finds the places where parameters enter a model (sites), in the graph of its loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from metacurv.estimators.graph.node_kinds import NORMS, RELABELLINGS, SAME_ORDER, TRANSPOSITIONS
from metacurv.estimators.graph.torch_private import saved
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.parameters import NumberedParameter

Role = Literal["weight", "convolution", "embedding", "broadcast"]


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
    consumers = walk.consumers
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
    if name in TRANSPOSITIONS:
        if len(view) == 2 and shape == view[::-1]:
            return shape, not transposed
        return None
    if name in SAME_ORDER and not (transposed and shape != view):
        return shape, transposed
    return None


def _role(
    walk: Walk, node: int, position: int, view: tuple[int, ...], *, transposed: bool
) -> Role | None:
    name = walk.names[node]
    at: Any = walk.nodes[node]
    if name == "AddmmBackward0":
        if saved(at, "alpha") != 1 or saved(at, "beta") != 1:
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
        return None if saved(at, "scale_grad_by_freq") or saved(at, "sparse") else "embedding"
    if name in NORMS:
        if name == "NativeBatchNormBackward0" and saved(at, "training"):
            return None
        return "broadcast" if position in (1, 2) else None
    if name in ("AddBackward0", "SubBackward0", "MulBackward0"):
        return "broadcast"
    if name == "PreluKernelBackward0":
        return "broadcast" if position == 1 else None
    return None


def layer_input(walk: Walk, node: int) -> Tensor:
    """Returns a of a matrix product z = a W' + b: [rows, in], with its graph."""
    at = walk.nodes[node]
    a: Tensor = saved(at, "mat1") if walk.names[node] == "AddmmBackward0" else saved(at, "self")
    return a

"""Finds the places where parameters enter a model (sites), in the graph of its loss."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from metacurv.estimators.graph.node_kinds import NORMS, RELABELLINGS, SAME_ORDER, TRANSPOSITIONS
from metacurv.estimators.graph.torch_private import saved
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.parameters import NumberedParameter

Role = Literal["weight", "convolution", "embedding", "broadcast"]

# The roles of what enters a node at a position.
_ROLES: dict[tuple[str, int], Role] = {
    ("AddmmBackward0", 0): "broadcast",
    ("AddmmBackward0", 2): "weight",
    ("MmBackward0", 1): "weight",
    ("ConvolutionBackward0", 1): "convolution",
    ("ConvolutionBackward0", 2): "broadcast",
    ("EmbeddingBackward0", 0): "embedding",
    ("PreluKernelBackward0", 1): "broadcast",
    **{(name, position): "broadcast" for name in NORMS for position in (1, 2)},
    **{(f"{name}Backward0", k): "broadcast" for name in ("Add", "Sub", "Mul") for k in (0, 1)},
}
# Nodes whose parameters belong to axis 1.
_ALONG_CHANNELS = (
    "ConvolutionBackward0",
    "NativeGroupNormBackward0",
    "NativeBatchNormBackward0",
)


@dataclass(frozen=True)
class Site:
    """One place where a parameter enters: index ``parameter``, at position ``position`` of node ``node``.

    ``view``: the parameter's shape there, before any expansion. ``is_transposed``: True for a matrix that arrives transposed.
    ``path``: nodes between the parameter and that node. ``is_bias``: True for the bias of a linear layer. ``lookup``: the node
    that looks up the rows of an embedding: ``node`` itself, or one below it where rows are the same for all examples
    (positions) and enter where they are added to what each example has.
    """

    parameter: int
    node: int
    position: int
    role: Role
    view: tuple[int, ...]
    is_transposed: bool
    path: tuple[int, ...]
    is_bias: bool = False
    lookup: int = -1

    def sizes(self, walk: Walk) -> list[int]:
        """Returns the parameter's sizes along the axes of z, 1 where it is broadcast."""
        axes = len(walk.shape(self.node))
        if walk.names[self.node] in _ALONG_CHANNELS:
            return [1, self.view[0], *([1] * (axes - 2))]
        return [1] * (axes - len(self.view)) + list(self.view)

    def example_axes(self, walk: Walk) -> int:
        """Returns how many leading axes of z may be that of examples."""
        axes = len(walk.shape(self.node))
        return {"weight": 1, "convolution": 1, "embedding": axes - 1, "broadcast": axes}[self.role]


def find_sites(walk: Walk, parameters: Sequence[NumberedParameter]) -> dict[int, list[Site] | None]:
    """Returns every site of every parameter that is used, by index; None where some place is of no known form."""
    sites: dict[int, list[Site] | None] = {}
    for leaf, parameter in walk.leaves.items():
        shape = tuple(parameters[parameter].tensor.shape)
        found = [*_sites_above(walk, parameter, leaf, shape)]
        known = [site for site in found if site is not None]
        sites[parameter] = known if len(known) == len(found) else None
    return sites


def _sites_above(
    walk: Walk,
    parameter: int,
    node: int,
    view: tuple[int, ...],
    is_transposed: bool = False,
    path: tuple[int, ...] = (),
) -> Iterator[Site | None]:
    """Yields what is at each consumer of ``node``, which is the parameter in the shape ``view``."""
    for above, position in walk.consumers[node]:
        name = walk.names[above]
        if name in RELABELLINGS or name == "ExpandBackward0":
            after = _view_after(walk, above, view, is_transposed)
            further: list[Site | None] = [None]
            if after is not None:
                further = list(_sites_above(walk, parameter, above, *after, (*path, above)))
            if None in further and name == "ExpandBackward0" and not is_transposed:
                # Whatever follows, as a token that is put before all sequences: it is one for each example from here on.
                further = [Site(parameter, above, position, "broadcast", view, False, path)]
            yield from further
            continue
        role = _role(walk, above, position, is_transposed)
        if role == "embedding":
            site = Site(parameter, above, position, role, view, is_transposed, path, lookup=above)
            yield from _sums_above(walk, site, above, walk.shape(above)) or [site]
            continue
        is_bias = name == "AddmmBackward0" and view == walk.shape(above)[1:] and position == 0
        yield role and Site(parameter, above, position, role, view, is_transposed, path, is_bias)


def _sums_above(walk: Walk, found: Site, node: int, rows: tuple[int, ...]) -> list[Site]:
    """Returns the sums that spread looked-up rows over further axes, as a model adds positions; none if one use is another."""
    sites: list[Site] = []
    for above, position in walk.consumers[node]:
        name, shape = walk.names[above], walk.shape(above)
        if name in SAME_ORDER and _without_ones(shape) == _without_ones(rows):
            sums = _sums_above(walk, found, above, rows)
        elif name == "AddBackward0" and math.prod(shape) > math.prod(rows):
            is_plain = position == 0 or saved(walk.nodes[above], "alpha") == 1
            sums = [replace(found, node=above, position=position)] if is_plain else []
        else:
            sums = []
        if not sums:
            return []
        sites += sums
    return sites


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the shape without its leading ones, which broadcasting would add."""
    return tuple(itertools.dropwhile(lambda size: size == 1, shape))


def _view_after(
    walk: Walk, node: int, view: tuple[int, ...], is_transposed: bool
) -> tuple[tuple[int, ...], bool] | None:
    """Returns shape and transposition after a relabelling; None where the order of elements gets lost."""
    name, shape = walk.names[node], walk.shape(node)
    if name == "ExpandBackward0" or name.startswith("Clone"):
        return view, is_transposed
    if name in TRANSPOSITIONS:
        return (shape, not is_transposed) if len(view) == 2 and shape == view[::-1] else None
    keeps_order = name in SAME_ORDER and not (is_transposed and shape != view)
    return (shape, is_transposed) if keeps_order else None


def _role(walk: Walk, node: int, position: int, is_transposed: bool) -> Role | None:
    name, at = walk.names[node], walk.nodes[node]
    role = _ROLES.get((name, position))
    if is_transposed and role != "weight":
        return None
    if name == "AddmmBackward0" and (saved(at, "alpha") != 1 or saved(at, "beta") != 1):
        return None
    if name == "EmbeddingBackward0" and (saved(at, "scale_grad_by_freq") or saved(at, "sparse")):
        return None
    if name == "NativeBatchNormBackward0" and saved(at, "training"):
        return None
    return role

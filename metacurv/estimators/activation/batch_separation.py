"""Follows the examples from the loss's boundary down to the layers, so that one look at a graph holds for good.

Each operation that is known here keeps examples apart whatever the values, and says where in its input they lie. Anything else,
such as an index or a product with a constant from the left, may pass something between examples in one call that it did not in
another, so a graph that has it is looked at every time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable
from typing import Any, NamedTuple

from metacurv.estimators.activation.batch_layout import WHOLE, Layout
from metacurv.estimators.graph.node_kinds import (
    ALONG_AN_AXIS,
    BY_EXAMPLE,
    REDUCTIONS,
    TRANSPOSITIONS,
    VIEWS,
    is_broadcast,
    is_fused_attention,
)
from metacurv.estimators.graph.torch_private import saved, signed
from metacurv.estimators.graph.walk import Walk


class Where(NamedTuple):
    """The axis that holds the examples, and how many neighbours along it belong to the same one.

    Along the axis stand ``block`` entries of the first example, as many of the second, and so on, once or again and again.
    """

    axis: int
    block: int


def stay_apart(
    walk: Walk,
    boundary: tuple[int, Layout],
    leading: Collection[int],
    sites: Iterable[tuple[int, Layout]],
) -> bool:
    """Tells whether the examples stay apart in every graph of this structure.

    Args:
        walk: the graph.
        boundary: the number of the node at the boundary, with the layout there.
        leading: the nodes from the boundary down that are sites or have sites below.
        sites: the numbers of the sites' nodes, with the layouts that were found there.
    """
    top, layout = boundary
    if layout == WHOLE:
        return False
    places = {top: _where(layout, walk.shape(top))}
    for node in walk.order:
        if node not in leading:
            continue
        for position, (below, _) in enumerate(walk.inputs[node]):
            if below not in leading:
                continue
            place = where_in_input(walk, node, position, places[node], layout.examples)
            if place is None or places.setdefault(below, place) != place:
                return False
    # Where all examples count as one, nothing can be wrong.
    return all(
        found == WHOLE or _where(found, walk.shape(node)) == places[node] for node, found in sites
    )


def _where(layout: Layout, shape: tuple[int, ...]) -> Where:
    return Where(layout.axis, shape[0] // layout.examples if layout.style == "major" else 1)


def where_in_input(
    walk: Walk, node: int, position: int, place: Where, examples: int
) -> Where | None:
    """Returns where an input of a node has the examples that its output has at ``place``; None where that may be nowhere."""
    shape = walk.shape(node)
    before = walk.shape(*walk.inputs[node][position])
    if walk.names[node] in VIEWS:
        return _before_view(before, shape, place, examples)
    axis = _axis_of_input(walk, node, position, place.axis, before, shape)
    # All others keep the order along the axis, and its length.
    return None if axis is None else Where(axis, place.block)


def _before_view(
    before: tuple[int, ...], after: tuple[int, ...], place: Where, examples: int
) -> Where | None:
    """Finds the same entries in the input of a view: in both they have the same place in the order of all entries."""
    if 0 in before:  # nothing flows through it
        return None
    step = place.block * math.prod(after[place.axis + 1 :])
    for axis, size in enumerate(before):
        inner = math.prod(before[axis + 1 :])
        if step % inner == 0 and size % (step // inner * examples) == 0:
            return Where(axis, step // inner)
    return None


def _axis_of_input(
    walk: Walk,
    node: int,
    position: int,
    axis: int,
    before: tuple[int, ...],
    after: tuple[int, ...],
) -> int | None:
    name, at = walk.names[node], walk.nodes[node]
    if name in ("MmBackward0", "AddmmBackward0"):  # the left factor holds rows
        return 0 if axis == 0 and position == (name == "AddmmBackward0") else None
    if name in ("ConvolutionBackward0", "BmmBackward0") or is_fused_attention(name):
        is_weight = name == "ConvolutionBackward0" and position
        return 0 if axis == 0 and before[0] == after[0] and not is_weight else None
    if name in TRANSPOSITIONS:
        return _order(name, at, len(after))[axis]
    if name in ALONG_AN_AXIS:
        return _axis_beside(saved(at, "dim"), len(before), len(after), axis)
    if name in REDUCTIONS:
        gone = {signed(d) % len(before) for d in saved(at, "dim") or range(len(before))}
        if saved(at, "keepdim"):
            return axis  # one that is gone has no room for examples
        return [d for d in range(len(before)) if d not in gone][axis]
    if name == "NativeLayerNormBackward0":
        return axis if axis < len(after) - len(saved(at, "normalized_shape")) else None
    if is_broadcast(name):
        aligned = axis - len(after) + len(before)
        return aligned if aligned >= 0 and before[aligned] == after[axis] else None
    return 0 if name in BY_EXAMPLE and axis == 0 else None


def _order(name: str, node: Any, axes: int) -> list[int]:
    """Returns the axes of the input in the order of the output's."""
    if name == "PermuteBackward0":
        return [signed(d) % axes for d in saved(node, "dims")]
    order = list(range(axes))
    swapped = (0, axes - 1) if name == "TBackward0" else (saved(node, "dim0"), saved(node, "dim1"))
    one, other = (signed(d) % axes for d in swapped)
    order[one], order[other] = order[other], order[one]
    return order


def _axis_beside(dim: int, before: int, after: int, axis: int) -> int | None:
    """Returns the input's axis for an operation along ``dim``, which it may take away or add; examples must lie elsewhere.

    before, after: the number of axes of input and output.
    """
    along = signed(dim) % max(before, after)
    if before > after:  # the output lacks it
        return axis + (axis >= along)
    return None if axis == along else axis - (after > before and axis > along)

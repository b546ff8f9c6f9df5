"""Reads what a custom function keeps for its backward pass: tensors that it saved, and attributes of its context.

Where no path leads from something kept to the parameters, autograd takes it for a constant. Whether it is one shows in the same
function of a graph that was computed elsewhere: a constant is the same there.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.utils import _pytree as pytree

from metacurv.estimators.problem.errors import explain_differentiation_errors
from metacurv.ops.arguments import elements_overlap

Run = Callable[[], Sequence[Tensor]]


@dataclass
class Kept:
    """A tensor that a function keeps: its memory, and where the gradient in it arrives, None where no path leads to it."""

    memory: Tensor
    edge: GradientEdge | None


def kept_tensors(node: Node, name: str) -> list[Kept]:
    """Lists what may be moved: distinct floating tensors that own their elements and are kept as they are."""
    found: dict[tuple[Any, ...], Kept] = {}
    for leaf in pytree.tree_leaves(_state(node, name)):
        x = _as_tensor(leaf)
        if x is None:
            continue
        edge = get_gradient_edge(x) if x.requires_grad else None
        key = (x.data_ptr(), x.shape, x.stride())
        if key not in found or found[key].edge is None:
            # Unlike detach(), data has a version counter of its own: graphs do not see that it moves.
            found[key] = Kept(x.data, edge)
    return list(found.values())


def keeps_numbers(node: Node) -> bool:
    """Tells whether an attribute of the context holds a floating Python number."""
    return any(isinstance(leaf, float) for leaf in pytree.tree_leaves(vars(node)))


def is_mask(x: Tensor) -> bool:
    """Tells whether the values are 0 and one number up to sign, or all of them 1 up to sign."""
    sizes = x.detach().abs()
    largest = sizes.max()
    is_mixed = bool((x != x.flatten()[0]).any())
    return bool(((sizes == 0) | (sizes == largest)).all()) and (is_mixed or float(largest) == 1)


def changes_elsewhere(node: Node, other: Node, name: str, run: Run) -> bool:
    """Tells whether ``run``, the function's backward pass, depends on something kept without a path that is no constant.

    ``other`` is the same function in a graph that was computed elsewhere. All that is moved is put back.
    """
    before = run()
    for put, moved, held in _what_differs(node, other, name):
        try:
            put(moved)
            if any(not torch.equal(x, y) for x, y in zip(before, run(), strict=True)):
                return True
        finally:
            put(held)
    return False


def _what_differs(
    node: Node, other: Node, name: str
) -> Iterator[tuple[Callable[[Any], object], Any, Any]]:
    """Yields a way to set what is not the same elsewhere, with the value there and the one here."""
    there = _state(other, name)
    for key, value in _state(node, name).items():
        leaves, form = pytree.tree_flatten(value)
        others, other_form = pytree.tree_flatten(there.get(key))
        if form != other_form:
            continue
        pairs = list(zip(leaves, others, strict=True))
        for memory, elsewhere in ((_as_tensor(x), _as_tensor(y)) for x, y in pairs):
            if memory is not None and elsewhere is not None and _may_differ(memory, elsewhere):
                yield memory.data.copy_, elsewhere.data, memory.detach().clone()
        moved = [y if isinstance(x, float) and isinstance(y, float) else x for x, y in pairs]
        if any(isinstance(x, float) and x != y for x, y in zip(leaves, moved, strict=True)):
            yield partial(setattr, node, key), pytree.tree_unflatten(moved, form), value


def _may_differ(x: Tensor, y: Tensor) -> bool:
    """Tells whether a tensor without a path is another elsewhere; a mask is a constant in pieces."""
    return not (x.requires_grad or x.shape != y.shape or torch.equal(x, y) or is_mask(x))


def _state(node: Any, name: str) -> dict[str, Any]:
    """Returns the attributes of the context, and what was saved as far as it is the same each time."""
    with explain_differentiation_errors(f"reading what {name} saved"):
        first, again = node.saved_tensors, node.saved_tensors
    # Others are made anew each time by a hook, so that moving one would change nothing.
    is_kept = [
        isinstance(a, Tensor) and a.data_ptr() == b.data_ptr()
        for a, b in zip(first, again, strict=True)
    ]
    return {
        **vars(node),
        "saved_tensors": [a if kept else None for a, kept in zip(first, is_kept, strict=True)],
    }


def _as_tensor(leaf: Any) -> Tensor | None:
    """Returns a leaf whose elements can be moved as a tensor of the same memory, else None."""
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(leaf, numpy.ndarray) and leaf.flags.writeable:
        leaf = torch.from_numpy(leaf) if leaf.dtype.kind == "f" else None
    if not isinstance(leaf, Tensor) or not leaf.is_floating_point() or not leaf.numel():
        return None
    return None if leaf.layout != torch.strided or elements_overlap(leaf) else leaf

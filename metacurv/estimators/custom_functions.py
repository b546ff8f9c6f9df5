"""Checks that the backward passes of custom functions (``torch.autograd.Function``) can be differentiated.

A second derivative goes through what a function's ``backward`` computes. Where that leaves autograd (``detach``, ``no_grad``,
numpy) or uses a tensor that ``forward`` made and saved, autograd takes for a constant what is none, and terms are lost without
a word. Every such function is asked alone, with a random cotangent s; b(s) are the gradients that it returns:

- Linearity: b is linear in s, so for any weights r the number <r, b(s)> must equal s . d<r, b(s)>/ds.
- Finite differences: a few elements of each tensor x that the function saved are moved in place, and the change of b(s) must be
  that which autograd finds along the path to x. A kink that a single element crosses is no fault: where the check of several
  elements fails, they are moved one by one.

A tensor without a path to the parameters may be an input that needs no gradient. Where there are more of them than such inputs,
``forward`` made the others, and they may depend on the parameters; where b(s) depends on one, the graph cannot tell, which is
an error as well. Masks, whose values are 0 and one other up to sign, are constants in pieces.

The function's ``backward`` runs once with a graph, and twice for each tensor that it saved. Nothing else of the graph runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from metacurv import ops
from metacurv.estimators.errors import (
    FUNCTION_ADVICE,
    NotTwiceDifferentiableError,
    explain_differentiation_errors,
)
from metacurv.estimators.graph import nodes_towards

_MOVED = 16  # elements of a saved tensor


@dataclass(frozen=True)
class _Precision:
    """Holds what a format allows: the step relative to an element, the tolerance, and elements of 16 that cross kinks."""

    step: float
    tolerance: float
    kinks: int


_FINE = {torch.float64: _Precision(1e-4, 1e-5, 1), torch.float32: _Precision(1e-2, 2e-2, 1)}
_COARSE = _Precision(0.125, 0.3, 4)
_ROUNDINGS = 8  # units in the last place of each number
_SEED = 0x5EED0F17  # no seed that a user's data are likely to share


def custom_functions(nodes: Iterable[Node]) -> list[Node]:
    """Returns the nodes whose backward is the user's Python code; torch's own functions are left out."""
    return [
        node
        for node in nodes
        if isinstance(node, BackwardCFunction) and not _is_torchs(_class(node))
    ]


def names_of(nodes: Iterable[Node]) -> list[str]:
    """Returns the names of the custom functions among ``nodes``, each once."""
    return list(dict.fromkeys(_class(node).__name__ for node in custom_functions(nodes)))


def check_differentiable(
    nodes: Iterable[Node], towards: Iterable[Tensor | GradientEdge], *, only_linear: bool = False
) -> None:
    """Checks the custom functions on the way to some tensors; others have no part in a derivative in these.

    Args:
        nodes: the nodes of a graph that is still there.
        towards: leaves that require a gradient, or edges of the graph.
        only_linear: True where backward passes are differentiated in their cotangents alone.

    Raises:
        NotTwiceDifferentiableError: derivatives of a backward pass would lack terms, or may; the message names the function.
        ValueError: the graph was freed.
    """
    graph = list(nodes)
    functions = custom_functions(graph)
    if functions:
        ends = [
            x.node if isinstance(x, GradientEdge) else get_gradient_edge(x).node for x in towards
        ]
        on_the_way = nodes_towards(graph, ends)
        for node in functions:
            if node in on_the_way:
                _Checked(node).check(only_linear=only_linear)


def _class(node: Node) -> Any:
    return type(node)._forward_cls  # type: ignore[attr-defined]


def _is_torchs(cls: Any) -> bool:
    # Operators of torch.library are the user's; torch makes their classes.
    module = cls.__module__
    return module.partition(".")[0] == "torch" and not module.startswith("torch._library")


@dataclass
class _Saved:
    """A tensor that a function saved: its memory, and where the gradient in it arrives, None where no path leads to it."""

    memory: Tensor
    edge: GradientEdge | Tensor | None


class _Checked:
    """One custom function in a graph, with a cotangent for each of its floating outputs."""

    def __init__(self, node: Node) -> None:
        self._node: Any = node
        self._name = _class(node).__name__
        self._generator = torch.Generator().manual_seed(_SEED)
        self._edges_out, self._cotangents = [], []
        for number, like in enumerate(self._node._input_metadata):
            if like.dtype.is_floating_point:
                self._edges_out.append(GradientEdge(node, number))
                numbers = torch.randn(tuple(like.shape), generator=self._generator)
                self._cotangents.append(numbers.to(like.device, like.dtype).requires_grad_())
        edges = dict.fromkeys(node.next_functions)
        self._inputs = [GradientEdge(below, nr) for below, nr in edges if below is not None]
        self._constant_inputs = sum(below is None for below, _ in node.next_functions)

    def check(self, *, only_linear: bool) -> None:
        """Raises NotTwiceDifferentiableError where derivatives of the function's backward pass would lack terms."""
        if not self._inputs or not self._edges_out:
            return
        with torch.inference_mode(False), torch.enable_grad():
            self._gradients = self._backward(create_graph=True)
            if all(bool(torch.isfinite(b).all()) for b in self._gradients):
                self._check_linear()
                if not only_linear:
                    self._check_saved()

    def _backward(self, *, create_graph: bool = False) -> list[Tensor]:
        """Returns b(s), dense, one for each input that it gives a gradient to."""
        cotangents = self._cotangents if create_graph else [s.detach() for s in self._cotangents]
        with explain_differentiation_errors(f"the backward pass of {self._name}"):
            found = torch.autograd.grad(
                self._edges_out, self._inputs, cotangents, create_graph=create_graph, retain_graph=True,
                allow_unused=True,
            )  # fmt: skip
        return [b.to_dense() if b.is_sparse else b for b in found if b is not None]

    def _slopes(self, weights: Sequence[Tensor], of: Sequence[Any]) -> Sequence[Tensor | None]:
        """Returns the derivatives of <r, b(s)> with r the ``weights``, None where no path leads."""
        total = _dot(weights, self._gradients)
        if not total.requires_grad:
            return [None] * len(of)
        with explain_differentiation_errors(f"the derivative of the backward pass of {self._name}"):
            return torch.autograd.grad(total, of, retain_graph=True, allow_unused=True)

    def _check_linear(self) -> None:
        weights = [b.detach().sign() for b in self._gradients]
        size = float(_dot(weights, [b.detach() for b in self._gradients]))
        found = rounding = 0.0
        for s, slope in zip(self._cotangents, self._slopes(weights, self._cotangents), strict=True):
            if slope is not None:
                parts = s.detach().double() * slope.double()
                found += float(parts.sum())
                rounding += _ROUNDINGS * torch.finfo(s.dtype).eps * float(parts.abs().sum())
        tolerance = _precision(self._cotangents[0].dtype).tolerance
        if abs(found - size) > tolerance * size + rounding:
            raise self._error(
                "whose backward leaves autograd (once_differentiable, detach, no_grad, .data or numpy) or is not linear in "
                "the gradient that it gets"
            )

    def _check_saved(self) -> None:
        unknown = 0
        for saved in self._saved():
            # Elements that are 0 lie on the kinks of what follows, and have no size to move by.
            moving = saved.memory.flatten().nonzero().flatten().cpu()
            chosen = moving[torch.randperm(len(moving), generator=self._generator)[:_MOVED]]
            if not len(chosen) or self._agree(saved, chosen):
                continue
            if saved.edge is None:
                unknown += not _is_mask(saved.memory)
                continue
            wrong = sum(not self._agree(saved, one[None]) for one in chosen.unbind())
            if wrong > _precision(saved.memory.dtype).kinks or wrong == len(chosen):
                raise self._error(
                    "whose backward leaves autograd (detach, no_grad, .data or numpy) on the way from a tensor that it saved"
                )
        if unknown > self._constant_inputs:
            raise self._error(
                "whose forward made and saved a tensor that its backward uses; autograd takes it for a constant, and cannot "
                "tell whether it is one"
            )

    def _saved(self) -> list[_Saved]:
        """Lists what may be moved: distinct floating tensors that own their elements and are kept as they are."""
        with explain_differentiation_errors(f"reading what {self._name} saved"):
            first, again = self._node.saved_tensors, self._node.saved_tensors
        # Others are made anew each time by a hook, so that moving one would change nothing.
        kept = [
            a
            for a, b in zip(first, again, strict=True)
            if isinstance(a, Tensor) and a.data_ptr() == b.data_ptr()
        ]
        kept += [value for value in vars(self._node).values() if isinstance(value, Tensor)]
        found: dict[tuple[Any, ...], _Saved] = {}
        for x in kept:
            if not x.is_floating_point() or not x.numel() or x.layout != torch.strided:
                continue
            if ops._elements_overlap(x):
                continue
            edge: GradientEdge | Tensor | None = None
            if x.requires_grad:
                edge = x if x.grad_fn is None else GradientEdge(x.grad_fn, x.output_nr)
            key = (x.data_ptr(), x.shape, x.stride())
            if key not in found or found[key].edge is None:
                # Unlike detach(), data has a version counter of its own: graphs do not see that it moves.
                found[key] = _Saved(x.data, edge)
        return list(found.values())

    def _agree(self, saved: _Saved, chosen: Tensor) -> bool:
        """Tells whether b(s) changes with elements of a saved tensor as autograd says."""
        memory, precision = saved.memory, _precision(saved.memory.dtype)
        places = tuple(i.to(memory.device) for i in torch.unravel_index(chosen, memory.shape))
        here = memory[places].clone()
        signs = torch.randint(0, 2, chosen.shape, generator=self._generator) * 2 - 1
        step = here * signs.to(here) * precision.step
        try:
            memory[places] = here + step
            after = self._backward()
            memory[places] = here - step
            before = self._backward()
        finally:
            memory[places] = here
        changes = [a.double() - b.double() for a, b in zip(after, before, strict=True)]
        if not all(bool(torch.isfinite(change).all()) for change in changes):
            return True
        weights = [torch.where(d == 0, 1.0, d.sign()).to(a.dtype) for a, d in zip(after, changes, strict=True)]  # fmt: skip
        change = float(_dot(weights, changes))
        # What moves is rounded, and so is each of the numbers that change.
        moved = [torch.where(d == 0, 0.0, a.abs()) for a, d in zip(after, changes, strict=True)]
        noise = _ROUNDINGS * torch.finfo(memory.dtype).eps * sum(float(a.sum()) for a in moved)
        found = 0.0
        if saved.edge is not None:
            (slope,) = self._slopes(weights, [saved.edge])
            if slope is not None:
                found = 2 * float((slope[places].double() * step.double()).sum())
        return abs(change - found) <= precision.tolerance * max(change, abs(found)) + noise

    def _error(self, what: str) -> NotTwiceDifferentiableError:
        return NotTwiceDifferentiableError(
            f"the graph of loss holds {self._name}, a torch.autograd.Function {what}: second derivatives would lack its part. "
            f"{FUNCTION_ADVICE}."
        )


def _dot(weights: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Returns the sum of all products, 0-dim float64."""
    parts = [(r.double() * x.double()).sum() for r, x in zip(weights, tensors, strict=True)]
    return torch.stack(parts).sum() if parts else torch.zeros((), dtype=torch.float64)


def _is_mask(x: Tensor) -> bool:
    """Tells whether the values are 0 and one number up to sign, or all of them 1 up to sign."""
    sizes = x.detach().abs()
    largest = sizes.max()
    is_mixed = bool((x != x.flatten()[0]).any())
    return bool(((sizes == 0) | (sizes == largest)).all()) and (is_mixed or float(largest) == 1)


def _precision(dtype: torch.dtype) -> _Precision:
    return _FINE.get(dtype, _COARSE)

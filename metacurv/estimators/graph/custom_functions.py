"""Checks that the backward passes of custom functions (``torch.autograd.Function``) can be differentiated.

A second derivative goes through what a function's ``backward`` computes. Where that leaves autograd (``detach``, ``no_grad``,
numpy) or uses a tensor that ``forward`` made and saved, autograd takes for a constant what is none, and terms are lost without
a word. Every such function is asked alone, with a random cotangent s; b(s) are the gradients that it returns:

- Linearity: b is linear in s, so for any weights r the number <r, b(s)> must equal s . d<r, b(s)>/ds.
- Finite differences: a few elements of each tensor x that the function saved are moved in place, and the change of b(s) must be
  that which autograd finds along the path to x. A kink that a single element crosses is no fault: where the check of several
  elements fails, they are moved one by one.

- Constants: a tensor without a path to the parameters is a constant for autograd, as is a Python number or an array. Whoever
  has the model runs it once more with other parameters: what b(s) depends on must be the same there. With the graph of a loss
  alone nobody can tell, and such a tensor is an error; numbers are taken for constants there. Masks, whose values are 0 and one
  other up to sign, are constants in pieces.

The function's ``backward`` runs once with a graph, and twice for each tensor that it saved; the model runs at most once more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from metacurv.estimators.graph.function_state import (
    Kept,
    changes_elsewhere,
    is_mask,
    keeps_numbers,
    kept_tensors,
)
from metacurv.estimators.graph.torch_private import outputs_of
from metacurv.estimators.graph.walk import nodes_below, nodes_towards
from metacurv.estimators.problem.elsewhere import SEED, Again
from metacurv.estimators.problem.errors import (
    FUNCTION_ADVICE,
    NotTwiceDifferentiableError,
    explain_differentiation_errors,
)

_MOVED = 16  # elements of a kept tensor
_MOST_DRAWN = 1 << 14  # to find them


class _Precision(NamedTuple):
    """Holds what a format allows: the step relative to an element, the tolerance, and elements of 16 that cross kinks."""

    step: float
    tolerance: float
    kinks: int


_PRECISIONS = {torch.float64: _Precision(1e-4, 1e-5, 1), torch.float32: _Precision(1e-2, 2e-2, 1)}
_COARSE = _Precision(0.125, 0.3, 4)
_ROUNDINGS = 8  # units in the last place of each number


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
    roots: Sequence[Node],
    towards: Iterable[Tensor | GradientEdge],
    *,
    again: Again | None = None,
    only_linear: bool = False,
) -> None:
    """Checks the custom functions on the way to some tensors; others have no part in a derivative in these.

    Args:
        roots: where the graph begins, which is still there.
        towards: leaves that require a gradient, or edges of the graph.
        again: computes the same graph elsewhere; None where nobody can.
        only_linear: True where backward passes are differentiated in their cotangents alone.

    Raises:
        NotTwiceDifferentiableError: derivatives of a backward pass would lack terms, or may; the message names the function.
        ValueError: the graph was freed.
    """
    nodes = list(nodes_below(roots))
    functions = custom_functions(nodes)
    if not functions:
        return
    ends = [x.node if isinstance(x, GradientEdge) else get_gradient_edge(x).node for x in towards]
    on_the_way = nodes_towards(nodes, ends).difference(ends)
    # Not before they are asked for; torch 2.10 frees what a function's node saved once the graph's root is gone.
    root = cache(lambda: None if again is None else again())
    twins = cache(lambda: _twins_of(functions, root()))
    for node in functions:
        if node in on_the_way:
            _Checked(node, twins).check(only_linear=only_linear)


def _twins_of(functions: Sequence[Node], loss: Tensor | None) -> dict[Node, Node]:
    """Returns the same functions in the graph of a loss that is computed elsewhere, if they can be found there."""
    root = None if loss is None else loss.grad_fn
    found = [] if root is None else custom_functions(nodes_below([root]))
    is_same = list(map(_class, found)) == list(map(_class, functions))
    return dict(zip(functions, found, strict=True)) if is_same else {}


def _class(node: Node) -> Any:
    return type(node)._forward_cls  # type: ignore[attr-defined]


def _is_torchs(cls: Any) -> bool:
    # Operators of torch.library are the user's; torch makes their classes.
    module = cls.__module__
    return module.partition(".")[0] == "torch" and not module.startswith("torch._library")


class _Checked:
    """One custom function in a graph, with a cotangent for each of its floating outputs."""

    def __init__(self, node: Node, twins: Callable[[], dict[Node, Node]]) -> None:
        self._node: Any = node
        self._twins = twins
        self._name = _class(node).__name__
        self._generator = torch.Generator().manual_seed(SEED)
        self._edges_out, self._cotangents = [], []
        for number, like in enumerate(outputs_of(node)):
            if like.dtype.is_floating_point:
                self._edges_out.append(GradientEdge(node, number))
                numbers = torch.randn(tuple(like.shape), generator=self._generator)
                self._cotangents.append(numbers.to(like.device, like.dtype).requires_grad_())
        edges = dict.fromkeys(node.next_functions)
        self._inputs = [GradientEdge(below, nr) for below, nr in edges if below is not None]

    def check(self, *, only_linear: bool) -> None:
        """Raises NotTwiceDifferentiableError where derivatives of the function's backward pass would lack terms."""
        if not self._inputs or not self._edges_out:
            return
        with torch.inference_mode(False), torch.enable_grad():
            self._gradients = self._backward(create_graph=True)
            if all(bool(torch.isfinite(b).all()) for b in self._gradients):
                self._check_linear()
                if not only_linear:
                    self._check_kept()

    def _backward(self, *, create_graph: bool = False) -> list[Tensor]:
        """Returns b(s), dense, one for each input that it gives a gradient to."""
        cotangents = self._cotangents if create_graph else [s.detach() for s in self._cotangents]
        with explain_differentiation_errors(f"the backward pass of {self._name}"):
            found = torch.autograd.grad(
                self._edges_out,
                self._inputs,
                cotangents,
                create_graph=create_graph,
                retain_graph=True,
                allow_unused=True,
            )
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
        tolerance = _PRECISIONS.get(self._cotangents[0].dtype, _COARSE).tolerance
        if abs(found - size) > tolerance * size + rounding:
            raise self._error(
                "whose backward leaves autograd (once_differentiable, detach, no_grad, .data or numpy) or is not linear in "
                "the gradient that it gets"
            )

    def _check_kept(self) -> None:
        has_unknown = False
        for kept in kept_tensors(self._node, self._name):
            moving = _places(kept.memory, self._generator)
            if not len(moving) or self._agree(kept, moving):
                continue
            if kept.edge is None:
                has_unknown = has_unknown or not is_mask(kept.memory)
                continue
            wrong = sum(not self._agree(kept, one[None]) for one in moving.unbind())
            if wrong > _PRECISIONS.get(kept.memory.dtype, _COARSE).kinks or wrong == len(moving):
                raise self._error(
                    "whose backward leaves autograd (detach, no_grad, .data or numpy) on the way from a tensor that it saved"
                )
        if has_unknown or keeps_numbers(self._node):
            self._check_constants(has_unknown)

    def _check_constants(self, has_unknown: bool) -> None:
        twin = self._twins().get(self._node)
        if twin is None:
            if has_unknown:
                raise self._error(
                    "whose backward uses a tensor without a path to the parameters; autograd takes it for a constant, and "
                    "nobody can tell here whether it is one (estimate_trace can, as it runs the model itself)"
                )
        elif changes_elsewhere(self._node, twin, self._name, self._backward):
            raise self._error(
                "whose backward uses what its forward made or took out of autograd (detach, numpy, float), and which changes "
                "with the parameters: autograd takes it for a constant"
            )

    def _agree(self, kept: Kept, chosen: Tensor) -> bool:
        """Tells whether b(s) changes with elements of a kept tensor as autograd says."""
        memory, precision = kept.memory, _PRECISIONS.get(kept.memory.dtype, _COARSE)
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
        weights = [
            torch.where(d == 0, 1.0, d.sign()).to(a.dtype)
            for a, d in zip(after, changes, strict=True)
        ]
        change = float(_dot(weights, changes))
        # What moves is rounded, and so is each of the numbers that change.
        moved = [torch.where(d == 0, 0.0, a.abs()) for a, d in zip(after, changes, strict=True)]
        noise = _ROUNDINGS * torch.finfo(memory.dtype).eps * sum(float(a.sum()) for a in moved)
        slope = None if kept.edge is None else self._slopes(weights, [kept.edge])[0]
        found = 0.0
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


def _places(x: Tensor, generator: torch.Generator) -> Tensor:
    """Returns the flat indices of up to 16 elements, drawn at random.

    Elements that are 0 lie on the kinks of what follows, and have no size to move by.
    """
    if x.numel() <= _MOST_DRAWN:
        drawn = torch.randperm(x.numel(), generator=generator)
    else:
        drawn = torch.randint(x.numel(), (_MOST_DRAWN,), generator=generator)
    values = x[tuple(i.to(x.device) for i in torch.unravel_index(drawn, x.shape))]
    return drawn[values.cpu() != 0][:_MOVED]

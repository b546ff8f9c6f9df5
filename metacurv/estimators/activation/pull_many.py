"""Pulls many cotangents at once from the loss's boundary down to the layers, without the autograd engine.

A backward pass through the engine takes one cotangent. Here each node of the graph passes R of them, stacked in front: a linear
layer as one matrix product over R N rows, a convolution as one over R N images, an elementwise operation by its slope, and
any other operation by R calls of the node itself (a node of autograd *is* the map from the cotangent of its output to those of
its inputs). Weight gradients are not formed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metacurv.estimators.activation.plan import ActivationPlan
from metacurv.estimators.activation.pull_by_engine import Bends, Cotangents
from metacurv.estimators.graph.derivatives import slope
from metacurv.estimators.graph.node_kinds import RELABELLINGS, is_callable, is_elementwise
from metacurv.estimators.graph.torch_private import saved, signed
from metacurv.estimators.graph.walk import Walk

# Maps a node of the graph, R cotangents [R, *z] and the shape of its input to cotangents [R, *input].
Rule = Callable[[Any, Tensor, tuple[int, ...]], Tensor]


@dataclass(frozen=True)
class PullStep:
    """One node on the way down, with those of its inputs that lead on, as (position, node below)."""

    node: int
    inputs: tuple[tuple[int, int], ...]


def plan_pull(walk: Walk, plan: ActivationPlan) -> list[PullStep] | None:
    """Returns the nodes from the boundary down, each after all that send it something; None where that is no way.

    It needs nodes of one output each, of kinds that are known to be callable, and no parameter that is indirect.
    """
    if plan.indirect or plan.head.boundary[1] != 0:
        return None
    needed = leading_to_sites(walk, plan)
    steps: list[PullStep] = []
    for node in walk.order:
        if node not in needed:
            continue
        inputs = walk.inputs[node]
        leading = tuple((at, below) for at, (below, _) in enumerate(inputs) if below in needed)
        if leading and not is_callable(walk.names[node], inputs, needed):
            return None
        steps.append(PullStep(node, leading))
    return steps or None


def leading_to_sites(walk: Walk, plan: ActivationPlan) -> set[int]:
    """Returns the nodes below the boundary that are sites or have sites below."""
    body, found = walk.below(plan.head.boundary[0]), set(plan.site_nodes)
    for node in reversed(walk.order):
        if node in body and any(below in found for below, _ in walk.inputs[node]):
            found.add(node)
    return found


class ReplicatedPull:
    """Steps bound to a graph, which return the cotangents at the nodes ``wanted``."""

    def __init__(self, walk: Walk, steps: Sequence[PullStep], wanted: Sequence[int]) -> None:
        self._walk, self._steps, self._wanted = walk, steps, wanted
        self._slopes: dict[int, Tensor] = {}

    def __call__(self, cotangent: Tensor, bends: Bends) -> Cotangents:
        """Pulls cotangent [R, *boundary]: for each node wanted [R, *its shape]."""
        flows: dict[int, Tensor] = {self._steps[0].node: cotangent}
        kept = set(self._wanted)
        found: dict[int, Tensor] = {}
        for step in self._steps:
            g = flows.pop(step.node)
            bend = bends.get((step.node, 0))
            if bend is not None:
                g = g + bend
            if step.node in kept:
                found[step.node] = g
            for below, back in self._backward(step, g):
                flows[below] = flows[below] + back if below in flows else back
        return [found.get(node) for node in self._wanted]

    def _backward(self, step: PullStep, g: Tensor) -> list[tuple[int, Tensor]]:
        if not step.inputs:
            return []
        walk = self._walk
        name, node = walk.names[step.node], walk.nodes[step.node]
        if len(step.inputs) == 1:
            ((position, below),) = step.inputs
            rule = _RULES.get((name, position))
            if rule is not None:
                return [(below, rule(node, g, walk.shape(below)))]
            if is_elementwise(name) and walk.shape(below) == walk.shape(step.node):
                if step.node not in self._slopes:
                    self._slopes[step.node] = slope(node, position)
                return [(below, g * self._slopes[step.node])]
        if name == "AddBackward0" and saved(node, "alpha") == 1:
            shapes = {walk.shape(below) for _, below in step.inputs}
            if shapes == {walk.shape(step.node)}:
                return [(below, g) for _, below in step.inputs]
        return _by_calls(walk, step, g)


def _by_calls(walk: Walk, step: PullStep, g: Tensor) -> list[tuple[int, Tensor]]:
    """Calls the node itself for each cotangent, and sums over broadcast axes: the engine does that, not the node."""
    node: Any = walk.nodes[step.node]
    made = [node(row) for row in g]
    pulled = []
    for position, below in step.inputs:
        rows = [row if isinstance(row, Tensor) else row[position] for row in made]
        shape = walk.shape(below)
        pulled.append((below, torch.stack([row.sum_to_size(shape) for row in rows])))
    return pulled


def _product(node: Any, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Pulls back through z = a M, M [in, out]."""
    right: Tensor = saved(node, "mat2")
    return torch.mm(g.reshape(-1, g.shape[-1]), right.t()).view(len(g), *shape)


def _scaled_product(node: Any, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Pulls back through z = beta b + alpha a M."""
    back = _product(node, g, shape)
    return back if saved(node, "alpha") == 1 else back * saved(node, "alpha")


def _reshape(node: Any, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    return g.reshape(len(g), *shape)


def _relu(node: Any, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    back: Tensor = torch.ops.aten.threshold_backward(g, saved(node, "result"), 0)
    return back


def _permute(node: Any, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    dims = [signed(d) for d in saved(node, "dims")]
    back = sorted(range(len(dims)), key=[d % len(dims) for d in dims].__getitem__)
    return g.permute(0, *(1 + d for d in back))


def _transpose(node: Any, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    axes = [signed(saved(node, "dim0")), signed(saved(node, "dim1"))]
    first, second = (1 + d % len(shape) for d in axes)
    return g.transpose(first, second)


def _convolution(node: Any, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    settings = ("stride", "padding", "dilation", "transposed", "output_padding", "groups")
    # The values of this argument play no part: only the gradient in the input is computed.
    like = saved(node, "input").expand(len(g), *shape).reshape(-1, *shape[1:])
    back, _, _ = torch.ops.aten.convolution_backward(
        g.reshape(-1, *g.shape[2:]),
        like,
        saved(node, "weight"),
        None,
        *(saved(node, setting) for setting in settings),
        [True, False, False],
    )
    found: Tensor = back.view(len(g), *shape)
    return found


_RULES: dict[tuple[str, int], Rule] = {
    ("AddmmBackward0", 1): _scaled_product,
    ("ConvolutionBackward0", 0): _convolution,
    ("MmBackward0", 0): _product,
    ("PermuteBackward0", 0): _permute,
    ("ReluBackward0", 0): _relu,
    ("TransposeBackward0", 0): _transpose,
    **{
        (name, 0): _reshape
        for name in RELABELLINGS
        if name.startswith(("ReshapeAlias", "Squeeze", "UnsafeView", "Unsqueeze", "View"))
    },
}

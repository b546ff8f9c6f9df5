"""Plans which operations of a loss's graph a probe can be passed through by rules, and in which order.

The graph falls into three parts. Nodes that depend on no probed parameter are constants. Among the others, the *body* is made
of chains of nodes that have a rule, each the only one to use the output of the node below, from layers up; the *head* is what
lies above, up to the loss: a loss function, or whatever has no rule. The last nodes of the chains are the *boundary*.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from metacurv.estimators.graph.linear_layers import LinearUse, find_linear_uses, right_factor
from metacurv.estimators.graph.loss_graph import LossGraph
from metacurv.estimators.graph.walk import signed
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.tangents.rules import (
    Elementwise,
    FrozenLayer,
    Layer,
    LogSoftmax,
    Reshape,
    Rule,
    Smooth,
)

# Elementwise operations of one tensor, by the name of their node.
_LINEAR_IN_PIECES = {
    "HardtanhBackward0",
    "LeakyReluBackward0",
    "NegBackward0",
    "ReluBackward0",
}
_SMOOTH = {
    "CeluBackward0",
    "EluBackward0",
    "GeluBackward0",
    "MishBackward0",
    "SigmoidBackward0",
    "SiluBackward0",
    "SoftplusBackward0",
    "TanhBackward0",
}
# Losses that are linear in their input, and so have no second derivative.
_LINEAR_LOSSES = {"NllLossBackward0", "NllLoss2DBackward0"}
_RESHAPES = {"ReshapeAliasBackward0", "UnsafeViewBackward0", "ViewBackward0"}


@dataclass(frozen=True)
class Step:
    """One node of the body.

    ``below``: the step that it takes its tangent from; None at the foot of a chain. ``upper``: the node that its output goes
    to, and the position there; None at the root. ``is_last``: True where the head takes its output. ``is_below_linear_loss``:
    True where the head is, besides, a loss that is linear in it.
    """

    node: Node
    rule: Rule
    below: int | None
    upper: tuple[Node, int] | None
    is_last: bool
    is_below_linear_loss: bool

    @property
    def edge(self) -> GradientEdge:
        """The edge where dL/dy arrives."""
        return GradientEdge(self.node, 0)


def plan_tangents(
    graph: LossGraph,
    parameters: Sequence[NumberedParameter],
) -> list[Step] | None:
    """Plans the body from the parameters up; None where there is none, or some parameter is used outside it (or is no leaf)."""
    uses = find_linear_uses(graph, parameters)
    if not uses:
        return None
    known = {id(p.tensor) for use in uses for p in (use.weight, use.bias) if p is not None}
    for parameter in parameters:
        if not parameter.tensor.is_leaf:
            return None
        if id(parameter.tensor) not in known and graph.uses(parameter.tensor):
            return None
    return _Body(graph, uses).steps()


class _Body:
    def __init__(self, graph: LossGraph, uses: Sequence[LinearUse]) -> None:
        self._graph = graph
        self._use_of = {use.node: use for use in uses}
        self._weights = self._weight_nodes(uses)
        self._live = self._nodes_above(self._weights)
        self._steps: list[Step] = []

    def steps(self) -> list[Step] | None:
        """Returns the steps chain by chain; None where a layer is in no chain."""
        feet = [node for node in self._use_of if not self._live_inputs(node)]
        for node in feet:
            self._add_chain(node)
        found = {step.node for step in self._steps}
        return self._steps if all(node in found for node in self._use_of) else None

    def _weight_nodes(self, uses: Sequence[LinearUse]) -> set[Node]:
        """Returns the leaves of weights and biases, and the transpositions between a weight and its layers."""
        parameters = [p for use in uses for p in (use.weight, use.bias) if p is not None]
        leaves = {self._graph.leaves[id(p.tensor)] for p in parameters}
        above = {node for leaf in leaves for node, _ in self._graph.consumers[leaf]}
        return leaves | {node for node in above if node.name() == "TBackward0"}

    def _nodes_above(self, nodes: set[Node]) -> set[Node]:
        above, stack = set(nodes), list(nodes)
        while stack:
            for node, _ in self._graph.consumers[stack.pop()]:
                if node not in above:
                    above.add(node)
                    stack.append(node)
        return above

    def _live_inputs(self, node: Node) -> list[int]:
        """Returns the positions of the inputs that depend on a probed parameter, a layer's own aside."""
        return [
            position
            for position, (below, _) in enumerate(node.next_functions)
            if below in self._live and below not in self._weights
        ]

    def _add_chain(self, node: Node) -> None:
        """Adds steps from a layer upwards as far as rules lead."""
        below: int | None = None
        rule = self._rule(node, [], None)
        while rule is not None:
            consumers = self._graph.consumers[node]
            upper, position = consumers[0] if consumers else (None, 0)
            upper_rule = None
            if upper is not None and self._live_inputs(upper) == [position]:
                upper_rule = self._rule(upper, [position], rule)
            is_last = upper_rule is None
            is_below_linear_loss = (
                is_last
                and upper is not None
                and upper.name() in _LINEAR_LOSSES
                and not self._graph.consumers[upper]
            )
            place = None if upper is None else (upper, position)
            self._steps.append(Step(node, rule, below, place, is_last, is_below_linear_loss))
            if upper is None:
                return
            node, rule, below = upper, upper_rule, len(self._steps) - 1

    def _rule(self, node: Node, live: list[int], below: Rule | None) -> Rule | None:
        """Returns the rule of a node; ``live``: its live inputs, at most one."""
        if len(self._graph.consumers[node]) > 1:
            return None  # its cotangent is then a sum, which hides hooks from prepare_rules
        if node in self._use_of:
            use = self._use_of[node]
            if live and live != [use.input_position]:
                return None  # the term added to the product depends on a parameter
            return Layer(use, has_input=bool(live))
        return _rule_of_other(node, live[0], below) if live else None


def _rule_of_other(node: Node, position: int, below: Rule | None) -> Rule | None:
    """Returns the rule of a node other than a probed layer, for the input at ``position``, the only one that is live."""
    name = node.name()
    source, output = node.next_functions[position]
    assert source is not None  # it is live
    edge = GradientEdge(source, output)
    x, y = source._input_metadata[output], node._input_metadata[0]
    if x.dtype != y.dtype:
        return None
    times_slope = _times_slope(node, position)
    is_factor = name == "MulBackward0" or (name == "DivBackward0" and position == 0)
    if name in _LINEAR_IN_PIECES or (is_factor and x.shape == y.shape):
        owns_tangent = below is not None and below.is_owned
        return Elementwise(_slope(node, times_slope), owns_tangent=owns_tangent)
    if name in _RESHAPES:
        return Reshape(x.shape, y.shape)
    if name in _SMOOTH:
        return Smooth(times_slope, _slope(node, times_slope), edge)
    if name == "LogSoftmaxBackward0":
        return LogSoftmax(node._saved_result, signed(node._saved_dim))  # type: ignore[attr-defined]
    if name == "MmBackward0" and position == 0:
        return FrozenLayer(right_factor(node))
    if name == "AddmmBackward0" and position == 1 and node._saved_alpha == 1:  # type: ignore[attr-defined]
        return FrozenLayer(right_factor(node))
    return None


def _times_slope(node: Node, position: int) -> Callable[[Tensor], Tensor]:
    """Returns the map g -> f'(x)' g for one input of a node, which is that very map."""

    def apply(g: Tensor) -> Tensor:
        result = node(g)  # type: ignore[operator]
        gradient: Tensor = result[position] if isinstance(result, tuple) else result
        return gradient

    return apply


def _slope(node: Node, times_slope: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns f'(x) of an elementwise node."""
    of_y = node._input_metadata[0]
    ones = torch.ones(of_y.shape, dtype=of_y.dtype, device=of_y.device)
    return times_slope(ones).detach()

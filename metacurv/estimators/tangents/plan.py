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

from metacurv.estimators.graph.node_kinds import (
    LOG_SOFTMAX,
    LOSSES_OF_LOG_P,
    VIEWS,
    is_elementwise,
    kind_of,
)
from metacurv.estimators.graph.sites import find_sites, layer_input
from metacurv.estimators.graph.torch_private import output_of, saved, signed
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.errors import NotApplicable
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

# Sums over activations are taken in the parameter's precision, which is too low in half types.
_DTYPES = (torch.float32, torch.float64)


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


@dataclass(frozen=True)
class _LinearLayer:
    """One layer z = a W' + b at a node (z = a W if not ``transposed``), with the indices of its parameters."""

    weight: int
    transposed: bool
    bias: int | None


def plan_tangents(walk: Walk, parameters: Sequence[NumberedParameter]) -> list[Step] | None:
    """Plans the body from the parameters up.

    Returns:
        The steps; None where some parameter is no leaf, or enters otherwise than as the weight or bias of a linear layer.

    Raises:
        NotApplicable: the input of a layer is sparse.
    """
    if not all(p.tensor.is_leaf for p in parameters):
        return None
    layers = _linear_layers(walk, parameters)
    return _Body(walk, layers, parameters).steps() if layers else None


def _linear_layers(
    walk: Walk, parameters: Sequence[NumberedParameter]
) -> dict[int, _LinearLayer] | None:
    """Returns the layers by node; None where some parameter is used in another way."""
    weights: dict[int, tuple[int, bool]] = {}
    biases: dict[int, int] = {}
    for index, sites in find_sites(walk, parameters).items():
        if sites is None or parameters[index].tensor.dtype not in _DTYPES:
            return None
        for site in sites:
            if site.role == "weight" and {walk.names[n] for n in site.path} <= {"TBackward0"}:
                weights[site.node] = index, site.is_transposed
            elif site.is_bias and not site.path:
                biases[site.node] = index
            else:
                return None
    if not biases.keys() <= weights.keys():
        return None  # the weight beside a bias is not measured
    return {
        node: _LinearLayer(weight, transposed, biases.get(node))
        for node, (weight, transposed) in weights.items()
    }


class _Body:
    def __init__(
        self,
        walk: Walk,
        layers: dict[int, _LinearLayer],
        parameters: Sequence[NumberedParameter],
    ) -> None:
        self._walk = walk
        self._layers = layers
        self._parameters = parameters
        transpositions = {
            above
            for leaf in walk.leaves
            for above, _ in walk.consumers[leaf]
            if walk.names[above] == "TBackward0"
        }
        self._weights = {*walk.leaves, *transpositions}  # nodes below the layers
        self._live = self._nodes_above(self._weights)
        self._steps: list[Step] = []

    def steps(self) -> list[Step] | None:
        """Returns the steps chain by chain; None where a layer is in no chain."""
        for node in sorted(self._layers, reverse=True):
            if not self._live_inputs(node):
                self._add_chain(node)
        found = {step.node for step in self._steps}
        return (
            self._steps if all(self._walk.nodes[node] in found for node in self._layers) else None
        )

    def _nodes_above(self, nodes: set[int]) -> set[int]:
        above, stack = set(nodes), list(nodes)
        while stack:
            for node, _ in self._walk.consumers[stack.pop()]:
                if node not in above:
                    above.add(node)
                    stack.append(node)
        return above

    def _live_inputs(self, node: int) -> list[int]:
        """Returns the positions of the inputs that depend on a probed parameter, a layer's own aside."""
        return [
            position
            for position, (below, _) in enumerate(self._walk.inputs[node])
            if below in self._live and below not in self._weights
        ]

    def _add_chain(self, node: int) -> None:
        """Adds steps from a layer upwards as far as rules lead."""
        walk = self._walk
        below: int | None = None
        rule = self._rule(node, [], None)
        while rule is not None:
            consumers = walk.consumers[node]
            upper, position = consumers[0] if consumers else (None, 0)
            upper_rule = None
            if upper is not None and self._live_inputs(upper) == [position]:
                upper_rule = self._rule(upper, [position], rule)
            is_last = upper_rule is None
            is_below_linear_loss = is_last and upper == 0 and walk.names[upper] in LOSSES_OF_LOG_P
            place = None if upper is None else (walk.nodes[upper], position)
            step = Step(walk.nodes[node], rule, below, place, is_last, is_below_linear_loss)
            self._steps.append(step)
            if upper is None:
                return
            node, rule, below = upper, upper_rule, len(self._steps) - 1

    def _rule(self, node: int, live: list[int], below: Rule | None) -> Rule | None:
        """Returns the rule of a node; ``live``: its live inputs, at most one."""
        walk = self._walk
        if len(walk.consumers[node]) > 1:
            return None  # its cotangent is then a sum, which hides hooks from prepare_rules
        layer = self._layers.get(node)
        if layer is None:
            return _rule_of_other(walk, node, live[0], below) if live else None
        if live and live != [1 if walk.names[node] == "AddmmBackward0" else 0]:
            return None  # the term added to the product depends on a parameter
        a = layer_input(walk, node)
        if a.layout != torch.strided:
            raise NotApplicable  # products with sparse inputs are left to autograd
        return Layer(
            a,
            # The right factor exists only where the input carries a graph.
            saved(walk.nodes[node], "mat2") if live else None,
            weight=self._parameters[layer.weight].number,
            transposed=layer.transposed,
            bias=None if layer.bias is None else self._parameters[layer.bias].number,
        )


def _rule_of_other(walk: Walk, index: int, position: int, below: Rule | None) -> Rule | None:
    """Returns the rule of a node other than a probed layer, for the input at ``position``, the only one that is live."""
    node, name = walk.nodes[index], walk.names[index]
    edge = walk.edge(*walk.inputs[index][position])
    x, y = output_of(edge.node, edge.output_nr), output_of(node)
    if x.dtype != y.dtype:
        return None
    times_slope = _times_slope(node, position)
    is_factor = name == "DivBackward0" and position == 0
    if x.shape == y.shape and (is_elementwise(name) or is_factor):
        slope = _slope(node, times_slope)
        if kind_of(name, node, [position]) == "smooth":
            return Smooth(times_slope, slope, edge)
        return Elementwise(slope, owns_tangent=below is not None and below.is_owned)
    if name in VIEWS:
        return Reshape(x.shape, y.shape)
    if name == LOG_SOFTMAX:
        return LogSoftmax(saved(node, "result"), signed(saved(node, "dim")))
    if name == "MmBackward0" and position == 0:
        return FrozenLayer(saved(node, "mat2"))
    if name == "AddmmBackward0" and position == 1 and saved(node, "alpha") == 1:
        return FrozenLayer(saved(node, "mat2"))
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
    of_y = output_of(node)
    ones = torch.ones(of_y.shape, dtype=of_y.dtype, device=of_y.device)
    return times_slope(ones).detach()

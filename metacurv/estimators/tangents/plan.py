"""Plans which operations of a loss's graph a probe can be passed through by rules, and in which order.

The graph falls into three parts. Nodes that depend on no probed parameter are constants. Among the others, the *body* is made
of chains of nodes that have a rule, each the only one to use the output of the node below, from layers up; the *head* is what
lies above, up to the loss: a loss function, or whatever has no rule. The last nodes of the chains are the *boundary*.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from metacurv.estimators.graph.sites import find_sites
from metacurv.estimators.graph.torch_private import output_of, saved, signed
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.errors import NotApplicable
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.tangents.rules import Layer, Linear, LogSoftmax, Rule, Smooth

# Sums over activations are taken in the parameter's precision, which is too low in half types.
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Step:
    """One node of the body.

    ``is_foot``: True for the first of a chain, a layer of data. ``upper``: the node that its output goes to, and the position
    there; None at the root. ``is_last``: True where the head takes its output. ``is_below_linear_loss``: True where the head
    is, besides, a loss that is linear in it.
    """

    node: Node
    rule: Rule
    is_foot: bool
    upper: tuple[Node, int] | None
    is_last: bool
    is_below_linear_loss: bool

    @property
    def edge(self) -> GradientEdge:
        """The edge where dL/dy arrives."""
        return GradientEdge(self.node, 0)


def plan_tangents(walk: Walk, parameters: Sequence[NumberedParameter]) -> list[Step] | None:
    """Plans the body from the parameters up.

    Returns:
        The steps, chain by chain; None where some parameter is no leaf, or enters otherwise than as the weight or bias of a
        linear layer.

    Raises:
        NotApplicable: the input of a layer is sparse.
    """
    if not all(p.tensor.is_leaf for p in parameters):
        return None
    weights: dict[int, tuple[int, bool]] = {}  # layer -> the number of its weight, is_transposed
    biases: dict[int, int] = {}
    for index, sites in find_sites(walk, parameters).items():
        if sites is None or parameters[index].tensor.dtype not in _DTYPES:
            return None
        for site in sites:
            if site.role == "weight" and {walk.names[n] for n in site.path} <= {"TBackward0"}:
                weights[site.node] = parameters[index].number, site.is_transposed
            elif site.is_bias and not site.path:
                biases[site.node] = parameters[index].number
            else:
                return None
    if not weights or not biases.keys() <= weights.keys():
        return None  # the weight beside a bias is not measured
    return _Body(walk, weights, biases).steps()


class _Body:
    """The nodes of a graph that have rules; ``weights``, ``biases``: those of each layer."""

    def __init__(
        self, walk: Walk, weights: dict[int, tuple[int, bool]], biases: dict[int, int]
    ) -> None:
        self._walk = walk
        self._weights = weights
        self._biases = biases
        transpositions = {
            above
            for leaf in walk.leaves
            for above, _ in walk.consumers[leaf]
            if walk.names[above] == "TBackward0"
        }
        self._below_layers = {*walk.leaves, *transpositions}
        self._live = set(self._below_layers)
        stack = list(self._live)
        while stack:
            found = {node for node, _ in walk.consumers[stack.pop()]} - self._live
            self._live |= found
            stack += found

    def steps(self) -> list[Step] | None:
        """Returns the steps chain by chain; None where a layer is in no chain."""
        chains = [
            self._chain(node)
            for node in sorted(self._weights, reverse=True)
            if not self._live_inputs(node)
        ]
        steps = [step for chain in chains for step in chain]
        nodes = {step.node for step in steps}
        return steps if all(self._walk.nodes[node] in nodes for node in self._weights) else None

    def _live_inputs(self, node: int) -> list[int]:
        """Returns the positions of the inputs that depend on a probed parameter, a layer's own aside."""
        return [
            position
            for position, (below, _) in enumerate(self._walk.inputs[node])
            if below in self._live and below not in self._below_layers
        ]

    def _chain(self, node: int) -> list[Step]:
        """Returns the steps from a layer of data upwards, as far as rules lead."""
        walk = self._walk
        steps: list[Step] = []
        rule = self._rule(node, [])
        while rule is not None:
            upper, position = next(iter(walk.consumers[node]), (None, 0))
            upper_rule = None
            if upper is not None and self._live_inputs(upper) == [position]:
                upper_rule = self._rule(upper, [position])
            is_last = upper_rule is None
            is_below_linear_loss = is_last and upper == 0 and walk.names[upper] in LOSSES_OF_LOG_P
            place = None if upper is None else (walk.nodes[upper], position)
            steps.append(
                Step(walk.nodes[node], rule, not steps, place, is_last, is_below_linear_loss)
            )
            if upper is None:
                break
            node, rule = upper, upper_rule
        return steps

    def _rule(self, node: int, live: list[int]) -> Rule | None:
        """Returns the rule of a node; ``live``: its live inputs, at most one."""
        walk = self._walk
        if len(walk.consumers[node]) > 1:
            return None  # its cotangent is then a sum, which hides hooks from the rules
        if node not in self._weights:
            return _rule_of_other(walk, node, live[0]) if live else None
        if live and live != [1 if walk.names[node] == "AddmmBackward0" else 0]:
            return None  # the term added to the product depends on a parameter
        a = walk.layer_input(node)
        if a.layout != torch.strided:
            raise NotApplicable  # products with sparse inputs are left to autograd
        weight, transposed = self._weights[node]
        # The right factor exists only where the input carries a graph.
        right = saved(walk.nodes[node], "mat2") if live else None
        return Layer(a, right, weight=weight, transposed=transposed, bias=self._biases.get(node))


def _rule_of_other(walk: Walk, index: int, position: int) -> Rule | None:
    """Returns the rule of a node other than a probed layer, for the input at ``position``, the only one that is live."""
    node, name = walk.nodes[index], walk.names[index]
    edge = walk.edge(*walk.inputs[index][position])
    x, y = output_of(edge.node, edge.output_nr), output_of(node)
    if x.dtype != y.dtype:
        return None
    is_factor = name == "DivBackward0" and position == 0
    if x.shape == y.shape and (is_elementwise(name) or is_factor):

        def times_slope(g: Tensor) -> Tensor:
            """Returns f'(x)' g, which is what the node itself computes."""
            result = node(g)  # type: ignore[operator]
            found: Tensor = result[position] if isinstance(result, tuple) else result
            return found

        slope = times_slope(torch.ones(y.shape, dtype=y.dtype, device=y.device)).detach()
        if kind_of(name, node, [position]) == "smooth":
            return Smooth(times_slope, slope, edge)
        return Linear(slope.mul, slope.mul)
    if name in VIEWS:
        before, after = x.shape, y.shape
        return Linear(lambda tx: tx.reshape(after), lambda back: back.reshape(before))
    if name == LOG_SOFTMAX:
        return LogSoftmax(saved(node, "result"), signed(saved(node, "dim")))
    is_product = name == "MmBackward0" and position == 0
    if is_product or (name == "AddmmBackward0" and position == 1 and saved(node, "alpha") == 1):
        right = saved(node, "mat2").detach()
        left = right.t()
        return Linear(lambda ta: ta @ right, lambda back: back @ left)
    return None

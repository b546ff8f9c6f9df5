"""A loss's autograd graph as a numbered list, with a key that graphs of the same computation share.

Findings about one graph (which nodes are layers, which axis holds the examples) are kept under its key, as numbers of
nodes, and hold for the graph of the next forward pass too.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from metacurv.estimators.problem.elsewhere import Again
from metacurv.estimators.problem.parameters import NumberedParameter

ACCUMULATE = "torch::autograd::AccumulateGrad"


@dataclass(frozen=True)
class Walk:
    """Nodes in the order a breadth-first walk from the loss meets them; node 0 is the loss's.

    ``shapes``: the shape of each node's first output. ``inputs``: for each node, the numbers of the nodes that its gradients go
    to (-1: nowhere) with the output of theirs. ``names``: the names of the nodes. ``leaves``: node number -> index in
    ``parameters``. ``again``: computes the same graph elsewhere.
    """

    nodes: list[Node]
    shapes: list[tuple[int, ...]]
    inputs: list[list[tuple[int, int]]]
    names: list[str]
    leaves: dict[int, int]
    key: Hashable
    again: Again | None

    def shape(self, index: int, output: int = 0) -> tuple[int, ...]:
        """Returns the shape of an output of a node."""
        if output == 0:
            return self.shapes[index]
        return tuple(self.nodes[index]._input_metadata[output].shape)

    def edge(self, index: int, output: int = 0) -> GradientEdge:
        """Returns the edge where the gradient in an output of a node arrives."""
        return GradientEdge(self.nodes[index], output)

    def consumers(self) -> list[list[tuple[int, int]]]:
        """Returns for each node the nodes that use its outputs, with the position of the edge among theirs."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        for index, row in enumerate(self.inputs):
            for position, (below, _) in enumerate(row):
                if below >= 0:
                    found[below].append((index, position))
        return found


def walk_graph(
    root: Node, parameters: Sequence[NumberedParameter], again: Again | None = None
) -> Walk:
    """Lists every node that a backward pass from ``root`` can reach."""
    index_of = {id(p.tensor): index for index, p in enumerate(parameters)}
    nodes: list[Node] = [root]
    number: dict[Node, int] = {root: 0}
    inputs: list[list[tuple[int, int]]] = []
    names: list[str] = []
    shapes: list[tuple[int, ...]] = []
    leaves: dict[int, int] = {}
    key: list[Any] = []
    for i, node in enumerate(nodes):  # grows as it goes
        row: list[tuple[int, int]] = []
        for below, output in node.next_functions:
            if below is None:
                row.append((-1, 0))
                continue
            j = number.get(below)
            if j is None:
                j = number[below] = len(nodes)
                nodes.append(below)
            row.append((j, output))
        name = node.name()
        inputs.append(row)
        names.append(name)
        shape = tuple(node._input_metadata[0].shape)
        shapes.append(shape)
        key += [name, tuple(row), shape]
        if name == ACCUMULATE:
            leaf = index_of.get(id(node.variable))  # type: ignore[attr-defined]
            key.append(leaf)
            if leaf is not None:
                leaves[i] = leaf
        else:
            key += [_plain(getattr(node, attribute)) for attribute in _settings(name, node)]
    return Walk(nodes, shapes, inputs, names, leaves, tuple(key), again)


_settings_of: dict[str, list[str]] = {}


def _settings(name: str, node: Node) -> list[str]:
    """Returns the attributes in which a kind of node keeps its settings, such as dimensions; not sizes and tensors."""
    known = _settings_of.get(name)
    if known is None:
        known = [
            attribute
            for attribute in dir(node)
            if attribute.startswith("_saved_")
            and "_sym_" not in attribute
            and not isinstance(getattr(node, attribute), Tensor)
        ]
        _settings_of[name] = known
    return known


def _plain(value: Any) -> Hashable:
    """Returns the part of a setting that can be compared; a tensor is replaced by its type."""
    if isinstance(value, Tensor):
        return Tensor
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def signed(value: int) -> int:
    """Converts a dimension or index that a node saved: torch shows a negative one as an unsigned 64-bit number."""
    return value if value < 1 << 63 else value - (1 << 64)

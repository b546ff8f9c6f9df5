"""A loss's autograd graph as a numbered list, with a key that graphs of the same computation share.

Findings about one graph (which nodes are layers, which axis holds the examples) are kept under its key, as numbers of
nodes, and hold for the graph of the next forward pass too.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import GradientEdge, Node

from metacurv.estimators.graph.torch_private import ACCUMULATE, leaf_of, output_of, saved, settings
from metacurv.estimators.problem.elsewhere import Again
from metacurv.estimators.problem.parameters import NumberedParameter


@dataclass(frozen=True)
class Walk:
    """Nodes in the order a breadth-first walk from the loss meets them; node 0 is the loss's.

    ``inputs``: for each node, the numbers of the nodes that its gradients go to (-1: nowhere) with the output of theirs.
    ``names``: the names of the nodes. ``leaves``: node number -> index in ``parameters``. ``again``: computes the same graph
    elsewhere.
    """

    nodes: list[Node]
    inputs: list[list[tuple[int, int]]]
    names: list[str]
    leaves: dict[int, int]
    again: Again | None

    @cached_property
    def shapes(self) -> list[tuple[int, ...]]:
        """The shape of each node's first output."""
        return [tuple(output_of(node).shape) for node in self.nodes]

    @cached_property
    def key(self) -> Hashable:
        """The common part of graphs of one computation: operations, settings, shapes, and which leaves are parameters."""
        parts: list[Any] = []
        for i, (name, node) in enumerate(zip(self.names, self.nodes, strict=True)):
            parts += [name, tuple(self.inputs[i]), self.shapes[i]]
            if name == ACCUMULATE:
                parts.append(self.leaves.get(i))
            else:
                parts += map(_plain, settings(name, node))
        return tuple(parts)

    @cached_property
    def consumers(self) -> list[list[tuple[int, int]]]:
        """The nodes that use the outputs of each node, with the position of the edge among theirs."""
        found: list[list[tuple[int, int]]] = [[] for _ in self.nodes]
        for index, row in enumerate(self.inputs):
            for position, (below, _) in enumerate(row):
                if below >= 0:
                    found[below].append((index, position))
        return found

    @cached_property
    def order(self) -> list[int]:
        """The numbers of the nodes, each after all that use it."""
        waiting = [len(consumers) for consumers in self.consumers]
        found, ready = [], [0]
        while ready:
            node = ready.pop()
            found.append(node)
            for below, _ in self.inputs[node]:
                if below >= 0:
                    waiting[below] -= 1
                    if not waiting[below]:
                        ready.append(below)
        return found

    @property
    def has_custom_functions(self) -> bool:
        """True where some node is of a ``torch.autograd.Function``, whose backward pass may not be differentiable."""
        return any(isinstance(node, BackwardCFunction) for node in self.nodes)

    def below(self, root: int, stop: int = -1) -> set[int]:
        """Returns ``root`` and the nodes below it, not through the node ``stop``."""
        found, stack = {root}, [root]
        while stack:
            for node, _ in self.inputs[stack.pop()]:
                if node >= 0 and node != stop and node not in found:
                    found.add(node)
                    stack.append(node)
        return found

    def shape(self, index: int, output: int = 0) -> tuple[int, ...]:
        """Returns the shape of an output of a node."""
        return tuple(output_of(self.nodes[index], output).shape) if output else self.shapes[index]

    def layer_input(self, index: int) -> Tensor:
        """Returns a of a matrix product z = a W' + b at a node: [rows, in], with its graph."""
        name = "mat1" if self.names[index] == "AddmmBackward0" else "self"
        a: Tensor = saved(self.nodes[index], name)
        return a

    def edge(self, index: int, output: int = 0) -> GradientEdge:
        """Returns the edge where the gradient in an output of a node arrives."""
        return GradientEdge(self.nodes[index], output)


def walk_graph(
    root: Node, parameters: Sequence[NumberedParameter], again: Again | None = None
) -> Walk:
    """Lists every node that a backward pass from ``root`` can reach."""
    index_of = {id(p.tensor): index for index, p in enumerate(parameters)}
    nodes: list[Node] = [root]
    number: dict[Node, int] = {root: 0}
    inputs: list[list[tuple[int, int]]] = []
    names: list[str] = []
    leaves: dict[int, int] = {}
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
        if name == ACCUMULATE and (leaf := index_of.get(id(leaf_of(node)))) is not None:
            leaves[i] = leaf
    return Walk(nodes, inputs, names, leaves, again)


def _plain(value: Any) -> Hashable:
    """Returns the part of a setting that can be compared; a tensor is replaced by its type."""
    if isinstance(value, Tensor):
        return Tensor
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def nodes_below(roots: Iterable[Node], without: Node | None = None) -> Iterator[Node]:
    """Yields every node that a backward pass from ``roots`` can reach, each once; not through the node ``without``."""
    stack = [root for root in roots if root is not without]
    seen = {*stack, *([] if without is None else [without])}
    while stack:
        node = stack.pop()
        yield node
        for below, _ in node.next_functions:
            if below is not None and below not in seen:
                seen.add(below)
                stack.append(below)


def nodes_towards(nodes: Iterable[Node], ends: Iterable[Node]) -> set[Node]:
    """Returns ``ends`` and those of ``nodes``, all of a graph, from which a backward pass reaches one of them."""
    consumers: dict[Node, list[Node]] = defaultdict(list)
    for node in nodes:
        for below, _ in node.next_functions:
            if below is not None:
                consumers[below].append(node)
    stack = list(ends)
    seen = set(stack)
    while stack:
        for above in consumers[stack.pop()]:
            if above not in seen:
                seen.add(above)
                stack.append(above)
    return seen

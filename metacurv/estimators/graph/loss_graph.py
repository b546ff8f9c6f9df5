"""Walks over autograd graphs."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator

from torch import Tensor
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node


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


class LossGraph:
    """The graph of a loss with its edges reversed.

    ``consumers`` maps a node to the nodes that send it their gradient, with the position of the edge among theirs.
    ``leaves`` maps the id of a leaf tensor to its node.
    ``has_python_functions`` is true where it holds a ``torch.autograd.Function``, whose backward may not be differentiable.
    """

    def __init__(self, root: Node) -> None:
        self.consumers: dict[Node, list[tuple[Node, int]]] = defaultdict(list)
        self.leaves: dict[int, Node] = {}
        self.has_python_functions = False
        for node in nodes_below([root]):
            edges = node.next_functions
            if not edges and (leaf := getattr(node, "variable", None)) is not None:
                self.leaves[id(leaf)] = node
            if isinstance(node, BackwardCFunction):
                self.has_python_functions = True
            for position, (below, _) in enumerate(edges):
                if below is not None:
                    self.consumers[below].append((node, position))

    def uses(self, leaf: Tensor) -> list[tuple[Node, int]]:
        """Returns the edges that lead to a leaf; none where the loss does not depend on it."""
        node = self.leaves.get(id(leaf))
        return [] if node is None else self.consumers[node]


def is_cut(gradients: Iterable[Tensor | None]) -> bool:
    """Tells whether the graph of some gradient ends in a once-differentiable function.

    torch puts an error node there, but one without a path to the parameters, so a backward pass towards them alone would
    leave it out and find too little curvature without a word.
    """
    roots = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    return any(node.name() == "torch::autograd::Error" for node in nodes_below(roots))

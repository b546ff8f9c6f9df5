"""Finds linear layers in the graph of a loss: which weights are only ever right factors of a matrix product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node, get_gradient_edge

from metacurv.estimators.parameters import NumberedParameter

# Sums over activations are taken in the parameter's precision, which half types do not have to spare.
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class LinearUse:
    """One layer z = a W' + b in the graph of the loss (z = a W if not ``transposed``)."""

    node: Node
    weight: NumberedParameter
    transposed: bool
    bias: NumberedParameter | None

    def input(self) -> Tensor:
        """a: [rows, in], with its graph."""
        saved = "_saved_mat1" if self.node.name() == "AddmmBackward0" else "_saved_self"
        tensor: Tensor = getattr(self.node, saved)
        return tensor


# A use as an edge of the graph: which input of which node a tensor feeds.
_Consumers = dict[Node, list[tuple[Node, int]]]


def _consumers(root: Node) -> _Consumers:
    """For every node below ``root``, the nodes that feed it their gradient, with the position of the edge."""
    consumers: _Consumers = defaultdict(list)
    seen = {root}
    stack = [root]
    while stack:
        node = stack.pop()
        for position, (below, _) in enumerate(node.next_functions):
            if below is None:
                continue
            consumers[below].append((node, position))
            if below not in seen:
                seen.add(below)
                stack.append(below)
    return consumers


def _is_weight_edge(node: Node, position: int) -> bool:
    """Whether the edge is the right factor of a plain matrix product."""
    name = node.name()
    if name == "AddmmBackward0":
        return position == 2 and node._saved_alpha == 1 and node._saved_beta == 1  # type: ignore[attr-defined]
    return name == "MmBackward0" and position == 1


def _weight_uses(
    parameter: NumberedParameter, consumers: _Consumers
) -> list[tuple[Node, bool]] | None:
    """(node, transposed) of every use of a weight, or None if some use is not a linear layer."""
    uses: list[tuple[Node, bool]] = []
    for node, position in consumers.get(get_gradient_edge(parameter.tensor).node, []):
        if node.name() == "TBackward0":
            edges, transposed = consumers[node], True
        else:
            edges, transposed = [(node, position)], False
        if not all(_is_weight_edge(*edge) for edge in edges):
            return None
        uses.extend((user, transposed) for user, _ in edges)
    return uses


def find_linear_uses(loss: Tensor, parameters: Sequence[NumberedParameter]) -> list[LinearUse]:
    """The layers whose weights (and biases) need no weight-sized products, found by walking the graph of ``loss``."""
    root = loss.grad_fn
    assert root is not None  # check_loss saw to it
    consumers = _consumers(root)
    leaves = [p for p in parameters if p.tensor.is_leaf and p.tensor.dtype in _DTYPES]
    weight_of: dict[Node, tuple[NumberedParameter, bool]] = {}
    for parameter in leaves:
        if parameter.tensor.dim() == 2:
            for node, transposed in _weight_uses(parameter, consumers) or []:
                weight_of[node] = (parameter, transposed)
    bias_of: dict[Node, NumberedParameter] = {}
    for parameter in leaves:
        edges = consumers.get(get_gradient_edge(parameter.tensor).node, [])
        if parameter.tensor.dim() == 1 and all(
            node in weight_of
            and position == 0
            and node.name() == "AddmmBackward0"
            and parameter.tensor.shape[0] == _out_features(*weight_of[node])
            for node, position in edges
        ):
            bias_of.update((node, parameter) for node, _ in edges)
    return [
        LinearUse(node, weight, transposed, bias_of.get(node))
        for node, (weight, transposed) in weight_of.items()
    ]


def _out_features(weight: NumberedParameter, transposed: bool) -> int:
    return weight.tensor.shape[0 if transposed else 1]

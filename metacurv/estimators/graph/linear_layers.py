"""Finds linear layers in the graph of a loss: the weights that only ever are right factors of a matrix product."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.autograd.graph import Node

from metacurv.estimators.graph.loss_graph import LossGraph
from metacurv.estimators.problem.errors import NotApplicable
from metacurv.estimators.problem.parameters import NumberedParameter

# Sums over activations are taken in the parameter's precision, which is too low in half types.
_DTYPES = (torch.float32, torch.float64)


@dataclass(frozen=True)
class LinearUse:
    """One layer z = a W' + b in the graph of the loss (z = a W if not ``transposed``)."""

    node: Node
    weight: NumberedParameter
    transposed: bool
    bias: NumberedParameter | None

    @property
    def input_position(self) -> int:
        """The position of the gradient in the layer's input among the node's gradients."""
        return 1 if self.node.name() == "AddmmBackward0" else 0

    def input(self) -> Tensor:
        """Returns a: [rows, in], with its graph; raises NotApplicable if it is sparse."""
        saved = "_saved_mat1" if self.node.name() == "AddmmBackward0" else "_saved_self"
        tensor: Tensor = getattr(self.node, saved)
        if tensor.layout != torch.strided:
            raise NotApplicable  # products with sparse inputs are left to autograd
        return tensor

    @property
    def rows(self) -> int:
        """The number of rows of a and z."""
        return int(self.node._input_metadata[0].shape[0])

    def right_factor(self) -> Tensor:
        """Returns W' or W as the graph saved it: [in, out]. It exists only where the input carries a graph."""
        return right_factor(self.node)


def right_factor(node: Node) -> Tensor:
    """Returns the saved right factor of a matrix product's node; torch raises an error if it was changed since."""
    tensor: Tensor = node._saved_mat2  # type: ignore[attr-defined]
    return tensor


def _is_weight_edge(node: Node, position: int) -> bool:
    """Tells whether the edge is the right factor of a plain matrix product."""
    name = node.name()
    if name == "AddmmBackward0":
        return position == 2 and node._saved_alpha == 1 and node._saved_beta == 1  # type: ignore[attr-defined]
    return name == "MmBackward0" and position == 1


def _weight_uses(leaf: Tensor, graph: LossGraph) -> list[tuple[Node, bool]]:
    """Returns (node, transposed) of every use of a weight; none if some use is not a linear layer."""
    uses: list[tuple[Node, bool]] = []
    for node, position in graph.uses(leaf):
        if node.name() == "TBackward0":
            edges, transposed = graph.consumers[node], True
        else:
            edges, transposed = [(node, position)], False
        if not all(_is_weight_edge(*edge) for edge in edges):
            return []
        uses.extend((user, transposed) for user, _ in edges)
    return uses


def find_linear_uses(graph: LossGraph, parameters: Sequence[NumberedParameter]) -> list[LinearUse]:
    """Returns the layers whose weights (and biases) need no weight-sized products, in the graph of a loss."""
    leaves = [p for p in parameters if p.tensor.is_leaf and p.tensor.dtype in _DTYPES]
    weight_of: dict[Node, tuple[NumberedParameter, bool]] = {}
    for parameter in leaves:
        if parameter.tensor.dim() == 2:
            for node, transposed in _weight_uses(parameter.tensor, graph):
                weight_of[node] = (parameter, transposed)
    bias_of: dict[Node, NumberedParameter] = {}
    for parameter in leaves:
        edges = graph.uses(parameter.tensor) if parameter.tensor.dim() == 1 else []
        if all(_is_bias_edge(parameter.tensor, *edge, weight_of) for edge in edges):
            bias_of.update((node, parameter) for node, _ in edges)
    return [
        LinearUse(node, weight, transposed, bias_of.get(node))
        for node, (weight, transposed) in weight_of.items()
    ]


def _is_bias_edge(
    bias: Tensor,
    node: Node,
    position: int,
    weight_of: dict[Node, tuple[NumberedParameter, bool]],
) -> bool:
    """Tells whether the edge adds a bias, [out], to the rows of a layer found before."""
    if node not in weight_of or node.name() != "AddmmBackward0" or position != 0:
        return False
    weight, transposed = weight_of[node]
    return bias.shape[0] == weight.tensor.shape[0 if transposed else 1]

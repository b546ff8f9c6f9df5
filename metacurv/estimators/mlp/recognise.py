"""Recognises the plainest of graphs: softmax cross-entropy over a stack of linear layers with elementwise functions between.

It is found from the loss down, node by node, and anything unexpected (a second use of a parameter, another operation, a frozen
weight in between, a view) ends the search: such graphs are for ``activation_plan``, which knows far more and takes longer. A
recognised chain needs no further look: its rows are examples and never meet, and its nodes hold all that the estimators need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from metacurv.estimators.graph.node_kinds import LOG_SOFTMAX, is_elementwise, kind_of
from metacurv.estimators.graph.second_derivative import second_derivative
from metacurv.estimators.graph.torch_private import ACCUMULATE, leaf_of, saved, signed
from metacurv.estimators.problem.parameters import NumberedParameter

_MEAN, _SUM = 1, 2  # torch's numbers of reductions
_DTYPES = (torch.float32, torch.float64)  # narrower ones need more care with precision


class ChainLayer(NamedTuple):
    """One linear layer z = a W' + b of a chain.

    ``node``: the node of z. ``a``: [N, I], detached. ``weight``, ``bias``: indices of the parameters, -1 for one that is not to
    be measured. ``matrix``: W [O, I], detached; None at the bottom,
    where nothing is pulled through it. ``below``: the elementwise function whose result a is, None at the bottom.
    """

    node: Node
    a: Tensor
    weight: int
    bias: int
    matrix: Tensor | None
    below: Node | None


@dataclass(frozen=True)
class Chain:
    """A chain of layers under softmax cross-entropy: the loss is sum_n weight_n CE_n.

    ``head``: the nodes of the loss function and of the log softmax. ``layers``: the layers from the top. ``log_p``: [N, C].
    ``sample_weight``: the weight of each example [N], or [1] for all.
    """

    head: tuple[Any, Any]
    layers: list[ChainLayer]
    log_p: Tensor
    sample_weight: Tensor

    @cached_property
    def has_smooth(self) -> bool:
        """True where some elementwise function has a second derivative."""
        return any(map(self.is_smooth, range(len(self.layers))))

    @property
    def columns(self) -> int:
        """The number of columns of the loss's factor."""
        return max(0, self.log_p.shape[1] - 1)

    def gradient(self, loss: Tensor) -> Tensor:
        """Returns dL/d logits [N, C]; hooks on the logits do not change it."""
        nll, softmax = self.head
        found: Tensor = softmax(nll(torch.ones_like(loss)))
        return found.detach()

    def is_rectified(self, index: int) -> bool:
        """Tells whether a ReLU lies below a layer: then its slope is 1 where a > 0."""
        below = self.layers[index].below
        return below is not None and below.name() == "ReluBackward0"

    def slope(self, index: int) -> Tensor:
        """Returns s'(z) of the function below a layer, [N, I]."""
        layer = self.layers[index]
        if self.is_rectified(index):
            return layer.a.sign()
        assert layer.below is not None
        slope: Tensor = layer.below(torch.ones_like(layer.a))  # type: ignore[operator]  # a node is the map g -> s'(z) g
        return slope.detach()

    def is_smooth(self, index: int) -> bool:
        """Tells whether the function below a layer has a second derivative."""
        node = self.layers[index].below
        return node is not None and kind_of(node.name(), node, [0]) == "smooth"

    def second_derivative(self, index: int, cotangent: Tensor) -> Tensor | None:
        """Returns s''(z) dL/da of the function below a layer, [N, I]; None where it is 0. ``cotangent``: dL/da."""
        if not self.is_smooth(index):
            return None
        layer, below = self.layers[index : index + 2]
        return second_derivative(layer.below, cotangent, GradientEdge(below.node, 0))

    def begins_at(self, output: GradientEdge | None) -> bool:
        """Tells whether the logits are the model's output, where the Gauss-Newton matrix ends."""
        return output is not None and output.node is self.layers[0].node


def find_chain(loss: Tensor, parameters: Sequence[NumberedParameter]) -> Chain | None:
    """Returns the chain that computes ``loss``, one element with a graph; None where the graph is anything else.

    Saved tensors are looked at only once all else fits: under a checkpoint looking at one runs the forward pass again.
    """
    top: Any = loss.grad_fn
    if top.name() != "NllLossBackward0":
        return None
    softmax: Any = top.next_functions[0][0]
    if softmax is None or softmax.name() != LOG_SOFTMAX:
        return None
    links = _links(softmax.next_functions[0][0], parameters)
    if links is None:
        return None
    log_p = saved(softmax, "result").detach()
    if log_p.dim() != 2 or signed(saved(softmax, "dim")) % 2 != 1 or log_p.dtype not in _DTYPES:
        return None
    sample_weight = _sample_weight(top, log_p)
    layers = _layers(links, log_p)
    if sample_weight is None or layers is None:
        return None
    return Chain((top, softmax), layers, log_p, sample_weight)


def _sample_weight(top: Any, log_p: Tensor) -> Tensor | None:
    reduction = saved(top, "reduction")
    if saved(top, "weight") is not None or reduction not in (_MEAN, _SUM):
        return None
    total: Tensor = saved(top, "total_weight")
    n = len(log_p)
    if log_p.is_cpu and total.item() == n:  # every target counts
        return _constant(1 / n if reduction == _MEAN else 1.0, log_p.dtype)
    counts: Tensor = saved(top, "target") != saved(top, "ignore_index")
    return counts / total if reduction == _MEAN else counts.to(log_p.dtype)


@lru_cache(maxsize=16)
def _constant(value: float, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):  # it outlives the caller's mode
        return torch.full((1,), value, dtype=dtype, device="cpu")


class _Link(NamedTuple):
    """A layer as far as the graph's structure tells: the nodes of z, of the bias if any, and of the input."""

    node: Any
    bias_node: Any
    weight: int
    bias: int
    below: Any


def _links(node: Any, parameters: Sequence[NumberedParameter]) -> list[_Link] | None:
    """Returns the layers from ``node`` down if nothing else is there, each parameter is used once and some are measured."""
    index_of = {id(parameter.tensor): index for index, parameter in enumerate(parameters)}
    links: list[_Link] = []
    used: list[int] = []
    while node is not None:
        name = node.name()
        bias_node = None
        if name == "AddmmBackward0":
            (bias_node, _), (below, _), (weight_node, _) = node.next_functions
        elif name == "MmBackward0":
            (below, _), (weight_node, _) = node.next_functions
        else:
            return None
        weight = _leaf(weight_node, index_of, through="TBackward0")
        bias = -1 if bias_node is None else _leaf(bias_node, index_of)
        if weight is None or bias is None:
            return None
        used += [index for index in (weight, bias) if index >= 0]
        links.append(_Link(node, bias_node, weight, bias, below))
        if below is None:
            return links if used and len(set(used)) == len(used) else None
        if not is_elementwise(below.name()) or len(below.next_functions) != 1:
            return None
        node = below.next_functions[0][0]
    return None


def _leaf(node: Any, index_of: dict[int, int], through: str = "") -> int | None:
    """Returns the index of the parameter at a node, or behind one called ``through``; -1 for another leaf, else None."""
    if node is not None and node.name() == through:
        node = node.next_functions[0][0]
    if node is None or node.name() != ACCUMULATE:
        return None
    return index_of.get(id(leaf_of(node)), -1)


def _layers(links: list[_Link], log_p: Tensor) -> list[ChainLayer] | None:
    """Returns the layers with the tensors that their nodes saved, if shapes, dtypes and layouts are plain."""
    layers: list[ChainLayer] = []
    width = log_p.shape[1]
    for link in links:
        node = link.node
        if node.name() == "AddmmBackward0":
            if saved(node, "alpha") != 1 or saved(node, "beta") != 1:
                return None
            a = saved(node, "mat1")
        else:
            a = saved(node, "self")
        bias = None if link.bias_node is None else leaf_of(link.bias_node)
        if bias is not None and tuple(bias.shape) != (width,):
            return None
        if a.dtype != log_p.dtype or a.layout != torch.strided:
            return None
        a = a.detach()
        matrix = None if link.below is None else saved(node, "mat2").detach().t()
        layers.append(ChainLayer(node, a, link.weight, link.bias, matrix, link.below))
        width = a.shape[1]
    return layers

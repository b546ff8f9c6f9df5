"""Recognises the plainest of graphs: softmax cross-entropy over a stack of linear layers with elementwise functions between.

Anything unexpected (a second use of a parameter, another operation, a frozen weight in between, a view) ends the search: such
graphs are for ``activation/plan.py``, which knows far more and takes longer. A recognised chain needs no further look: its rows
are examples and never meet, and its nodes hold all that the estimators need.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node

from metacurv.estimators.graph.derivatives import slope
from metacurv.estimators.graph.node_kinds import LOG_SOFTMAX, NLL_LOSS, is_elementwise, kind_of
from metacurv.estimators.graph.torch_private import ACCUMULATE, leaf_of, saved, signed
from metacurv.estimators.problem.parameters import NumberedParameter

_MEAN, _SUM = 1, 2  # torch's numbers of reductions
_DTYPES = (torch.float32, torch.float64)  # narrower ones need more care with precision


class ChainLayer(NamedTuple):
    """One linear layer z = a W' + b of a chain, above an elementwise function a = s(z below).

    ``node``: the node of z. ``a``: [N, I], detached. ``weight``, ``bias``: indices of the parameters, -1 for one that is not to
    be measured. ``matrix``: W [O, I], detached; None at the bottom, where nothing is pulled through it. ``below``: the
    function's node, None at the bottom.
    """

    node: Node
    a: Tensor
    weight: int
    bias: int
    matrix: Tensor | None
    below: Node | None

    @property
    def is_transposed(self) -> bool:
        """True where the weight is W [O, I] itself, False where it is W'."""
        below = self.node.next_functions[-1][0]
        return below is not None and below.name() == "TBackward0"

    @property
    def is_rectified(self) -> bool:
        """True where the function is a ReLU: then its slope is 1 where a > 0."""
        return self.below is not None and self.below.name() == "ReluBackward0"

    @property
    def is_smooth(self) -> bool:
        """True where the function has a second derivative."""
        return self.below is not None and kind_of(self.below.name(), self.below, [0]) == "smooth"

    def slope(self) -> Tensor:
        """Returns s'(z below), [N, I]; not defined at the bottom."""
        return self.a.sign() if self.is_rectified else slope(self.below)


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
        return any(layer.is_smooth for layer in self.layers)

    @property
    def columns(self) -> int:
        """The number of columns of the loss's factor."""
        return max(0, self.log_p.shape[1] - 1)

    def gradient(self, loss: Tensor) -> Tensor:
        """Returns dL/d logits [N, C]; hooks on the logits do not change it."""
        nll, softmax = self.head
        found: Tensor = softmax(nll(torch.ones_like(loss)))
        return found.detach()

    def begins_at(self, output: GradientEdge | None) -> bool:
        """Tells whether the logits are the model's output, where the Gauss-Newton matrix ends."""
        return output is not None and output.node is self.layers[0].node


def find_chain(loss: Tensor, parameters: Sequence[NumberedParameter]) -> Chain | None:
    """Returns the chain that computes ``loss``, one element with a graph; None where the graph is anything else.

    Saved tensors are looked at only once all else fits: under a checkpoint looking at one runs the forward pass again.
    """
    top: Any = loss.grad_fn
    if top.name() != NLL_LOSS:
        return None
    softmax: Any = top.next_functions[0][0]
    if softmax is None or softmax.name() != LOG_SOFTMAX:
        return None
    links = _links(softmax, parameters)
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


def _links(above: Any, parameters: Sequence[NumberedParameter]) -> list[_Link] | None:
    """Returns the layers below ``above`` if nothing else is there, each parameter is used once and some are measured.

    It reads the nodes by itself: a walk over the whole graph would be felt in the time of a small estimate.
    """
    index_of = {id(parameter.tensor): index for index, parameter in enumerate(parameters)}
    links: list[_Link] = []
    used: list[int] = []
    while above is not None:
        node = above.next_functions[0][0]
        name = None if node is None else node.name()
        bias_node = None
        if name == "AddmmBackward0":
            (bias_node, _), (below, _), (weight_node, _) = node.next_functions
        elif name == "MmBackward0":
            (below, _), (weight_node, _) = node.next_functions
        else:
            return None
        if weight_node is not None and weight_node.name() == "TBackward0":
            weight_node = weight_node.next_functions[0][0]
        weight = _leaf(weight_node, index_of)
        bias = -1 if bias_node is None else _leaf(bias_node, index_of)
        if weight is None or bias is None:
            return None
        used += [index for index in (weight, bias) if index >= 0]
        links.append(_Link(node, bias_node, weight, bias, below))
        is_plain = below is None or (
            len(below.next_functions) == 1 and is_elementwise(below.name())
        )
        if not is_plain:
            return None
        above = below
    return links if used and len(set(used)) == len(used) else None


def _leaf(node: Any, index_of: dict[int, int]) -> int | None:
    """Returns the index of the parameter at a node; -1 for another leaf, else None."""
    is_leaf = node is not None and node.name() == ACCUMULATE
    return index_of.get(id(leaf_of(node)), -1) if is_leaf else None


def _layers(links: list[_Link], log_p: Tensor) -> list[ChainLayer] | None:
    """Returns the layers with the tensors that their nodes saved, if shapes, dtypes and layouts are plain."""
    layers: list[ChainLayer] = []
    width = log_p.shape[1]
    for node, bias_node, weight, bias, below in links:
        is_affine = node.name() == "AddmmBackward0"
        if is_affine and (saved(node, "alpha") != 1 or saved(node, "beta") != 1):
            return None
        a = saved(node, "mat1" if is_affine else "self")
        added = None if bias_node is None else leaf_of(bias_node)
        if added is not None and added.shape != (width,):
            return None
        if a.dtype != log_p.dtype or a.layout != torch.strided:
            return None
        matrix = None if below is None else saved(node, "mat2").detach().t()
        layers.append(ChainLayer(node, a.detach(), weight, bias, matrix, below))
        width = a.shape[1]
    return layers

"""The same samples v . (H v) for less work where parameters are weights and biases of linear layers.

A linear layer z = a W' + b has the gradient dL/dW = d' a with d = dL/dz, so a backward pass through the gradient graph
computes, for every probe, two weight-sized matrix products that are only dotted with v_W afterwards. With the probe
(V, v_b) of (W, b), and s = sum over all parameters of v . gradient, the chain rule gives without them

    v_W . (H v)_W = <ds/dz, a V'> + <ds/d(dL/da), d V>,      v_b . (H v)_b = <sum over rows of ds/dz, v_b>,

because s depends on W through z = a W' + b and through dL/da = d W only, and s itself holds W's part as
<d, a V'>, whose derivatives in d and a are injected as a V' and d V. Four products a layer instead of six, none of them
followed by an addition of weight-sized matrices. Value and distribution are those of ``double_backward``, probe by probe, up
to rounding.

Measured (benchmarks/bench_hessian_trace.py): see the README's table.

A weight qualifies when every one of its uses in the graph is such a layer (torch's addmm or mm on a leaf or its
transpose); any other use, such as a penalty, a tied embedding or a convolution, leaves the parameter to the general
path, in the same backward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from metacurv.estimators.double_backward import gradient_graph, hessian_vector_products
from metacurv.estimators.moments import Moments
from metacurv.estimators.parameters import NumberedParameter
from metacurv.ops import Implementation

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


@dataclass(frozen=True)
class _Layer:
    """What a use needs for every probe; tensors marked graph carry the gradient graph."""

    weight: int  # positions in `probed`
    bias: int | None
    transposed: bool
    input: Tensor  # a: [rows, in], graph
    plain_input: Tensor  # a without graph
    gradient: Tensor  # d = dL/dz: [rows, out], graph
    plain_gradient: Tensor
    output_input: int  # where ds/dz stands in the results
    input_gradient: int | None  # where ds/d(dL/da) stands in the results


class FactoredDoubleBackward:
    """v . (H v) of every parameter, linear layers by their factors and all others from H v, in one backward pass a probe."""

    def __init__(
        self, loss: Tensor, parameters: Sequence[NumberedParameter], uses: Sequence[LinearUse]
    ) -> None:
        self.parameters = list(parameters)
        device = parameters[0].tensor.device
        factored = {p.number for use in uses for p in (use.weight, use.bias) if p is not None}
        general = [p for p in parameters if p.number not in factored]
        inputs = [use.input() for use in uses]
        layer_edges = [GradientEdge(use.node, 0) for use in uses]
        input_edges = [get_gradient_edge(a) for a in inputs if a.requires_grad]
        found = iter(
            gradient_graph(
                loss, [*layer_edges, *input_edges, *(p.tensor for p in general)]
            )
        )
        layer_gradients = [next(found) for _ in uses]
        input_gradients = [next(found) if a.requires_grad else None for a in inputs]
        live = [
            (gradient, p)
            for gradient, p in zip(found, general, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        self._general_gradients = [gradient for gradient, _ in live]
        self._general = [p for _, p in live]
        self.probed = self._general + [p for p in parameters if p.number in factored]
        position = {p.number: i for i, p in enumerate(self.probed)}
        self._targets: list[Any] = [p.tensor for p in self._general]
        self._layers: list[_Layer] = []
        for use, edge, a, d, da in zip(
            uses, layer_edges, inputs, layer_gradients, input_gradients, strict=True
        ):
            if d is None:
                continue  # the layer's output does not reach the loss
            self._targets.append(edge)
            output_input = len(self._targets) - 1
            input_gradient = None
            if da is not None and da.requires_grad:
                self._targets.append(da)
                input_gradient = len(self._targets) - 1
            self._layers.append(
                _Layer(
                    weight=position[use.weight.number],
                    bias=None if use.bias is None else position[use.bias.number],
                    transposed=use.transposed,
                    input=a,
                    plain_input=a.detach(),
                    gradient=d,
                    plain_gradient=d.detach(),
                    output_input=output_input,
                    input_gradient=input_gradient,
                )
            )
        self.moments = Moments(self.probed, device)

    @torch.no_grad()
    def accumulate(
        self, vectors: Sequence[Tensor], run: Implementation, key: int, probe: Tensor
    ) -> None:
        """Adds one sample; vectors: the probe, one tensor for each of ``probed``."""
        sources = list(self._general_gradients)
        cotangents = list(vectors[: len(self._general)])
        forward: list[Tensor] = []  # a V' + v_b of each layer: [rows, out]
        backward: list[Tensor | None] = []  # d V: [rows, in]
        for layer in self._layers:
            v = vectors[layer.weight]
            v = v.t() if layer.transposed else v
            out = (
                layer.plain_input @ v
                if layer.bias is None
                else torch.addmm(vectors[layer.bias], layer.plain_input, v)
            )
            forward.append(out)
            if layer.gradient.requires_grad:
                sources.append(layer.gradient)
                cotangents.append(out)
            back = layer.plain_gradient @ v.t() if layer.input.requires_grad else None
            backward.append(back)
            if back is not None:
                sources.append(layer.input)
                cotangents.append(back)
        results = hessian_vector_products(sources, cotangents, self._targets)
        self.moments.add(
            torch.cat(
                [
                    self._general_samples(results, run, key, probe),
                    self._layer_samples(vectors, forward, backward, results),
                ]
            )
        )

    def _general_samples(
        self, results: Sequence[Tensor | None], run: Implementation, key: int, probe: Tensor
    ) -> Tensor:
        """float64 [number of general parameters]."""
        products = [
            probe.new_zeros(0, dtype=torch.float32) if h is None else h
            for h in results[: len(self._general)]
        ]
        return run.signed_sum(
            products, key, probe, [p.number for p in self._general], [0] * len(products)
        )

    def _layer_samples(
        self,
        vectors: Sequence[Tensor],
        forward: Sequence[Tensor],
        backward: Sequence[Tensor | None],
        results: Sequence[Tensor | None],
    ) -> Tensor:
        """float64 [number of factored parameters]."""
        parts: list[list[Tensor]] = [[] for _ in self.probed]
        for layer, out, back in zip(self._layers, forward, backward, strict=True):
            dz = results[layer.output_input]
            if dz is not None:
                parts[layer.weight].append(_dot(dz, out))
                if layer.bias is not None:
                    in_bias = _dot(dz.sum(0), vectors[layer.bias])
                    parts[layer.bias].append(in_bias)
                    parts[layer.weight].append(-in_bias)
            if layer.input_gradient is not None and back is not None:
                da = results[layer.input_gradient]
                if da is not None:
                    parts[layer.weight].append(_dot(da, back))
        first = len(self._general)
        zero = self.moments.mean.new_zeros(())
        sums = [sum(part[1:], part[0]) if part else zero for part in parts[first:]]
        return torch.stack([value.to(torch.float64) for value in sums])


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """x, y: the same shape -> 0-dim."""
    return torch.dot(x.reshape(-1), y.reshape(-1))

"""The same samples v . (H v) for less work where parameters are weights and biases of linear layers.

A linear layer z = a W' + b has the gradient dL/dW = d' a with d = dL/dz, so a backward pass through the gradient graph
computes, for every probe, two weight-sized matrix products that are only dotted with v_W afterwards. With the probe
(V, v_b) of (W, b), and s = sum over all parameters of v . gradient, the chain rule gives without them

    v_W . (H v)_W = <ds/dz, a V'> + <ds/d(dL/da), d V>,      v_b . (H v)_b = <sum over rows of ds/dz, v_b>,

because s depends on W through z = a W' + b and through dL/da = d W only, and s itself holds W's part as <d, a V'>, whose
derivatives in d and a are injected as a V' and d V. Four products a layer instead of six, none followed by an addition of
weight-sized matrices, and the two with V need no stored V (``ops.signed_matmul``). Samples are those of ``double_backward``,
probe by probe, up to rounding.

A weight qualifies when every one of its uses in the graph is such a layer; any other use, such as a penalty, a tied
embedding or a convolution, leaves the parameter to the general path, in the same backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from metacurv import ops
from metacurv.estimators.double_backward import (
    gradient_graph,
    graph_carrying_one,
    hessian_vector_products,
)
from metacurv.estimators.errors import explain_differentiation_errors
from metacurv.estimators.linear_uses import LinearUse
from metacurv.estimators.moments import SampleMoments
from metacurv.estimators.parameters import NumberedParameter

# Below this size of a weight, or this batch, making look-up indices costs more than a product with a stored probe.
_SIGNED_ELEMENTS = 2048
_SIGNED_ROWS = 16


@dataclass
class _Terms:
    """The terms of one layer in the probe under way, taken by hooks as the backward pass goes by.

    So neither ds/dz nor ds/d(dL/da) need be kept until its end.
    """

    out: Tensor | None = None  # a V' + v_b: [rows, out]
    back: Tensor | None = None  # d V: [rows, in]
    v_b: Tensor | None = None
    from_output: Tensor | None = None  # <ds/dz, a V' + v_b>
    in_bias: Tensor | None = None  # the share of v_b in it
    from_input: Tensor | None = None  # <ds/d(dL/da), d V>

    def start(self, out: Tensor, back: Tensor | None, v_b: Tensor | None) -> None:
        """A new probe."""
        self.out, self.back, self.v_b = out, back, v_b
        self.from_output = self.in_bias = self.from_input = None

    def take_output(self, cotangents: tuple[Tensor | None, ...]) -> None:
        """Hook of the layer's node: ds/dz arrives."""
        dz = cotangents[0]
        if dz is not None and self.out is not None:
            self.from_output = _dot(dz, self.out)
            if self.v_b is not None:
                self.in_bias = _dot(dz.sum(0), self.v_b)

    def watch_input(self, gradient: Tensor) -> None:
        """gradient: d W, this layer's share of dL/da. Its node is ours, and the hook goes with it."""
        node, position = gradient.grad_fn, gradient.output_nr
        assert node is not None  # the backward pass started from a 1 that carries a graph

        def take_input(cotangents: tuple[Tensor | None, ...]) -> None:
            cotangent = cotangents[position]
            if cotangent is not None and self.back is not None:
                self.from_input = _dot(cotangent, self.back)

        node.register_prehook(take_input)


@contextmanager
def _watched(uses: Sequence[LinearUse], terms: Sequence[_Terms]) -> Iterator[None]:
    """Within, a backward pass through the layers shows each its product d W."""

    def show(use: LinearUse, term: _Terms) -> Callable[..., None]:
        def hook(products: tuple[Tensor | None, ...], _: Any) -> None:
            product = products[use.input_position]
            if product is not None:
                term.watch_input(product)

        return hook

    handles = [use.node.register_hook(show(use, t)) for use, t in zip(uses, terms, strict=True)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class _Layer:
    """What a use needs for every probe."""

    use: LinearUse
    signed: bool  # whether products with V are formed without V
    input: Tensor  # a: [rows, in], with its graph
    gradient: Tensor  # d = dL/dz: [rows, out], with its graph
    terms: _Terms
    target: int  # what the backward pass goes for: dL/db, or dL/dz where there is no bias
    plain_input: Tensor  # a and d without graph, contiguous
    plain_gradient: Tensor


@dataclass(frozen=True)
class _Probe:
    """One probe: stored vectors by parameter number, and what ``signed_matmul`` needs to do without them."""

    vectors: dict[int, Tensor]
    run: ModuleType
    key: int
    index: Tensor

    def product(self, x: Tensor, layer: _Layer, *, transpose: bool) -> Tensor:
        """x V' or x V for the weight of ``layer``."""
        weight = layer.use.weight
        if layer.signed:
            rows, cols = weight.tensor.shape
            product: Tensor = self.run.signed_matmul(
                x, self.key, self.index, weight.number, rows, cols, transpose
            )
            return product
        v = self.vectors[weight.number]
        return x @ (v.t() if transpose else v)


class FactoredDoubleBackward:
    """v . (H v) of every parameter: linear layers by their factors, all others from H v, in one backward pass a probe."""

    def __init__(
        self,
        loss: Tensor,
        parameters: Sequence[NumberedParameter],
        uses: Sequence[LinearUse],
        *,
        backend: str,
    ) -> None:
        self.parameters = list(parameters)
        factored = {p.number for use in uses for p in (use.weight, use.bias) if p is not None}
        general = [p for p in parameters if p.number not in factored]
        self._factored = [p for p in parameters if p.number in factored]
        with explain_differentiation_errors("reading the inputs of linear layers"):
            inputs = [use.input() for use in uses]
        edges = [GradientEdge(use.node, 0) for use in uses]
        input_edges = [get_gradient_edge(a) for a in inputs if a.requires_grad]
        wanted = [*edges, *(p.tensor for p in general), *input_edges]
        # Every gradient is a product with this 1, so a backward pass that has to reach it runs every node on its way,
        # and with it the hooks of the input terms.
        start = graph_carrying_one(loss)
        terms = [_Terms() for _ in uses]
        with _watched(uses, terms):
            gradients = gradient_graph(loss, wanted, start=start)
        # The gradients in the inputs had to be asked for, or their products would not be formed; their hooks are set.
        del gradients[len(uses) + len(general) :]
        self.gradients = gradients
        found = iter(gradients)
        layer_gradients = [next(found) for _ in uses]
        live = [
            (g, p) for g, p in zip(found, general, strict=True) if g is not None and g.requires_grad
        ]
        self._general = [p for _, p in live]
        self._general_gradients = [g for g, _ in live]
        self._targets: list[Any] = [*(p.tensor for p in self._general), start]
        self._layers: list[_Layer] = []
        self._handles: list[Any] = []
        for use, edge, a, d, term in zip(uses, edges, inputs, layer_gradients, terms, strict=True):
            if d is None:
                continue  # the layer's output does not reach the loss
            # A node that nothing wanted lies behind is not run, and its hook not called: the bias, which is small, makes it
            # wanted. Without one, ds/dz is kept.
            if use.bias is None:
                self._targets.append(edge)
            else:
                self._targets.append(use.bias.tensor)
                self._handles.append(use.node.register_prehook(term.take_output))
            self._layers.append(
                _Layer(
                    use=use,
                    signed=_pays_signed(use, a, backend),
                    input=a,
                    gradient=d,
                    terms=term,
                    target=len(self._targets) - 1,
                    plain_input=a.detach().contiguous(),
                    plain_gradient=d.detach().contiguous(),
                )
            )
        unstored = {p.number for p in self._factored} - {
            p.number
            for layer in self._layers
            for p in ([] if layer.signed else [layer.use.weight]) + [layer.use.bias]
            if p is not None
        }
        self.probed = [
            *self._general,
            *(p for p in self._factored if p.number not in unstored),
        ]
        self.moments = SampleMoments([*self._general, *self._factored], parameters[0].tensor.device)
        self._assignment: Tensor | None = None

    def _add_target(self, target: Any) -> int:
        self._targets.append(target)
        return len(self._targets) - 1

    @torch.no_grad()
    def accumulate(
        self, vectors: Sequence[Tensor], run: ModuleType, key: int, probe: Tensor
    ) -> None:
        """Adds one sample; vectors: the probe, one tensor for each of ``probed``."""
        stored = {p.number: v for p, v in zip(self.probed, vectors, strict=True)}
        drawn = _Probe(stored, run, key, probe)
        sources = list(self._general_gradients)
        cotangents = list(vectors[: len(self._general)])
        for layer in self._layers:
            out = drawn.product(layer.plain_input, layer, transpose=layer.use.transposed)
            v_b = None if layer.use.bias is None else stored[layer.use.bias.number]
            if v_b is not None:
                out += v_b
            sources.append(layer.gradient)
            cotangents.append(out)
            back = None
            if layer.input.requires_grad:
                back = drawn.product(
                    layer.plain_gradient, layer, transpose=not layer.use.transposed
                )
                sources.append(layer.input)
                cotangents.append(back)
            layer.terms.start(out, back, v_b)
        results = hessian_vector_products(sources, cotangents, self._targets)
        for layer in self._layers:
            if layer.use.bias is None:
                layer.terms.take_output((results[layer.target],))
        sample = self._layer_samples()
        if self._general:
            sample = torch.cat([self._general_samples(drawn, results), sample])
        self.moments.add(sample)

    def close(self) -> None:
        """Takes the hooks off the graph of the loss, which is the user's."""
        for handle in self._handles:
            handle.remove()

    def _general_samples(self, drawn: _Probe, results: Sequence[Tensor | None]) -> Tensor:
        """float64 [number of general parameters]."""
        products = [
            drawn.index.new_zeros(0, dtype=torch.float32) if h is None else h
            for h in results[: len(self._general)]
        ]
        numbers = [p.number for p in self._general]
        sums: Tensor = drawn.run.signed_sum(
            products, drawn.key, drawn.index, numbers, [0] * len(products)
        )
        return sums

    def _layer_samples(self) -> Tensor:
        """float64 [number of factored parameters]."""
        terms: list[Tensor] = []
        owners: list[dict[int, float]] = []  # parameter number -> factor, for each term
        for layer in self._layers:
            weight, bias, found = layer.use.weight, layer.use.bias, layer.terms
            if found.from_output is not None:
                terms.append(found.from_output)
                owners.append({weight.number: 1.0})
            if found.in_bias is not None and bias is not None:
                terms.append(found.in_bias)
                owners.append({bias.number: 1.0, weight.number: -1.0})
            if found.from_input is not None:
                terms.append(found.from_input)
                owners.append({weight.number: 1.0})
        device = self.parameters[0].tensor.device
        if not terms:
            return torch.zeros(len(self._factored), dtype=torch.float64, device=device)
        if self._assignment is None:
            # Which terms exist depends on the graph only, so the first probe's table serves all.
            self._assignment = torch.tensor(
                [[owner.get(p.number, 0.0) for owner in owners] for p in self._factored],
                dtype=torch.float64,
                device=device,
            )
        return self._assignment @ torch.stack(terms).to(torch.float64)


def _pays_signed(use: LinearUse, a: Tensor, backend: str) -> bool:
    return (
        use.weight.tensor.numel() >= _SIGNED_ELEMENTS
        and a.shape[0] >= _SIGNED_ROWS
        and ops.signed_matmul_pays(backend, use.weight.tensor)
    )


def _dot(x: Tensor, y: Tensor) -> Tensor:
    """x, y: the same shape -> 0-dim."""
    return torch.dot(x.reshape(-1), y.reshape(-1))

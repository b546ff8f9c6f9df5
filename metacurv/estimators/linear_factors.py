"""The samples of ``double_backward`` for less work where parameters are weights and biases of linear layers.

A linear layer z = a W' + b has the gradient dL/dW = d' a with d = dL/dz, so a backward pass through the gradient graph
computes, for every probe, two weight-sized matrix products that are only dotted with v_W afterwards. With the probe
(V, v_b) of (W, b), and s = sum over all parameters of v . gradient, the chain rule gives without them

    v_W . (H v)_W = <ds/dz, a V'> + <ds/d(d W), d V>,      v_b . (H v)_b = <sum over rows of ds/dz, v_b>,

because s depends on W through z = a W' + b and through the layer's share d W of dL/da only, and s itself holds W's part
as <d, a V'>, whose derivatives in d and a are injected as a V' and d V. A layer takes four products instead of six, none
followed by an addition of weight-sized matrices, and the two with V need no stored V (``ops.signed_matmul``). Samples are
those of ``double_backward``, probe by probe, up to rounding.

Memory, whatever the number of probes: beyond a double backward, up to four tensors the size of each layer's activations; the
gradients and Hessian-vector products of the weights, which a double backward holds, are not formed. ``worth_factoring`` keeps
the difference below one copy of the weight.

A weight qualifies when every one of its uses in the graph is such a layer; any other use, such as a penalty, a tied
embedding or a convolution, leaves the parameter to the general path, in the same backward pass.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from metacurv.estimators.double_backward import gradient_graph, hessian_vector_products
from metacurv.estimators.errors import explain_differentiation_errors
from metacurv.estimators.graph import LossGraph
from metacurv.estimators.kept_tables import kept_table
from metacurv.estimators.linear_uses import LinearUse, find_linear_uses
from metacurv.estimators.moments import SampleMoments
from metacurv.estimators.parameters import NumberedParameter
from metacurv.estimators.probe_products import Probe, dot, needs_stored_probe


def worth_factoring(
    uses: list[LinearUse], graph: LossGraph, parameters: Sequence[NumberedParameter]
) -> list[LinearUse]:
    """Returns the uses whose activations take at most one copy of their weight more than what is not formed."""
    held: dict[int, int] = defaultdict(int)  # elements of activations, by parameter number
    for use in uses:
        held[use.weight.number] += 2 * use.rows * sum(use.weight.tensor.shape)
    heavy = {
        use.weight.number for use in uses if held[use.weight.number] > 3 * use.weight.tensor.numel()
    }
    if not heavy:
        return uses
    return find_linear_uses(graph, [p for p in parameters if p.number not in heavy])


@dataclass(frozen=True)
class _Layer:
    """The tensors of a use that every probe needs."""

    use: LinearUse
    stored: bool  # whether products with V need V
    input: Tensor  # a: [rows, in], with its graph
    gradient: Tensor  # d = dL/dz: [rows, out], with its graph
    output_target: int  # where ds/dz stands among the targets of the backward pass
    input_target: int | None  # where ds/d(d W) stands; None where nothing depends on it

    plain_input: Tensor  # a and d without graph, contiguous
    plain_gradient: Tensor


@contextmanager
def _input_products(uses: Sequence[LinearUse]) -> Iterator[dict[Node, GradientEdge]]:
    """Notes, in a backward pass within the block, where in its graph each layer's product d W is made.

    It notes the edge, not the tensor, so that the tensor's memory is not held.
    """
    found: dict[Node, GradientEdge] = {}

    def note(use: LinearUse) -> Callable[[tuple[Tensor | None, ...], Any], None]:
        def hook(products: tuple[Tensor | None, ...], _: Any) -> None:
            product = products[use.input_position]
            if product is not None and product.requires_grad:
                found[use.node] = get_gradient_edge(product)

        return hook

    handles = [use.node.register_hook(note(use)) for use in uses]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


class FactoredDoubleBackward:
    """Draws samples v . (H v) of every parameter: linear layers by their factors, all others from H v.

    A probe takes one backward pass.
    """

    def __init__(
        self,
        loss: Tensor,
        parameters: Sequence[NumberedParameter],
        uses: Sequence[LinearUse],
        *,
        backend: str,
        start: Tensor | None,
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
        with _input_products(uses) as products:
            gradients = gradient_graph(loss, wanted, start=start)
        # The gradients in the inputs had to be asked for, or the products they are made of would not be formed.
        del gradients[len(uses) + len(general) :]
        self.gradients = gradients
        found = iter(gradients)
        layer_gradients = [next(found) for _ in uses]
        live = [
            (g, p) for g, p in zip(found, general, strict=True) if g is not None and g.requires_grad
        ]
        self._general = [p for _, p in live]
        self._general_gradients = [g for g, _ in live]
        self._targets: list[Any] = [p.tensor for p in self._general]
        self._layers: list[_Layer] = []
        for use, edge, a, d in zip(uses, edges, inputs, layer_gradients, strict=True):
            if d is not None:  # else the layer's output does not reach the loss
                self._layers.append(
                    _Layer(
                        use=use,
                        stored=needs_stored_probe(use, backend),
                        input=a,
                        gradient=d,
                        output_target=self._add_target(edge),
                        input_target=(
                            self._add_target(products[use.node]) if use.node in products else None
                        ),
                        plain_input=a.detach().contiguous(),
                        plain_gradient=d.detach().contiguous(),
                    )
                )
        unstored = {p.number for p in self._factored} - {
            p.number
            for layer in self._layers
            for p in ([layer.use.weight] if layer.stored else []) + [layer.use.bias]
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
        """Adds one sample; ``vectors`` is the probe, one tensor for each of ``probed``."""
        stored = {p.number: v for p, v in zip(self.probed, vectors, strict=True)}
        drawn = Probe(stored, run, key, probe)
        sources = list(self._general_gradients)
        cotangents = list(vectors[: len(self._general)])
        forward: list[Tensor] = []  # a V' + v_b of each layer: [rows, out]
        backward: list[Tensor | None] = []  # d V: [rows, in]
        for layer in self._layers:
            out = drawn.forward(layer.plain_input, layer.use, stored=layer.stored)
            forward.append(out)
            if layer.gradient.requires_grad:
                sources.append(layer.gradient)
                cotangents.append(out)
            back = None
            if layer.input.requires_grad:
                back = drawn.backward(layer.plain_gradient, layer.use, stored=layer.stored)
                sources.append(layer.input)
                cotangents.append(back)
            backward.append(back)
        results = hessian_vector_products(sources, cotangents, self._targets)
        sample = self._layer_samples(drawn, forward, backward, results)
        if self._general:
            sample = torch.cat([self._general_samples(drawn, results), sample])
        self.moments.add(sample)

    def _general_samples(self, drawn: Probe, results: Sequence[Tensor | None]) -> Tensor:
        """Returns the samples of the general parameters, float64 [number of general parameters]."""
        products = [
            drawn.index.new_zeros(0, dtype=torch.float32) if h is None else h
            for h in results[: len(self._general)]
        ]
        numbers = [p.number for p in self._general]
        sums: Tensor = drawn.run.signed_sum(
            products, drawn.key, drawn.index, numbers, [0] * len(products)
        )
        return sums

    def _layer_samples(
        self,
        drawn: Probe,
        forward: Sequence[Tensor],
        backward: Sequence[Tensor | None],
        results: Sequence[Tensor | None],
    ) -> Tensor:
        """Returns the samples of the factored parameters, float64 [number of factored parameters]."""
        terms: list[Tensor] = []
        owners: list[dict[int, float]] = []  # parameter number -> factor, for each term
        for layer, out, back in zip(self._layers, forward, backward, strict=True):
            weight, bias = layer.use.weight, layer.use.bias
            dz = results[layer.output_target]
            if dz is not None:
                terms.append(dot(dz, out))
                owners.append({weight.number: 1.0})
                if bias is not None:  # its share of <dz, a V' + v_b>
                    terms.append(dot(dz.sum(0), drawn.vectors[bias.number]))
                    owners.append({bias.number: 1.0, weight.number: -1.0})
            da = None if layer.input_target is None else results[layer.input_target]
            if da is not None and back is not None:
                terms.append(dot(da, back))
                owners.append({weight.number: 1.0})
        if not terms:
            return torch.zeros(len(self._factored), dtype=torch.float64, device=drawn.index.device)
        if self._assignment is None:
            # Which terms exist depends on the graph only, so the first probe's table serves all.
            rows = [[owner.get(p.number, 0.0) for owner in owners] for p in self._factored]
            self._assignment = kept_table(rows, len(terms), drawn.index.device)
        return self._assignment @ torch.stack(terms).to(torch.float64)

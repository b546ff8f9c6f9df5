"""Samples v_n' H_n v_n and v_n' G_n v_n of every example n, each with a direction of its own, from one double backward.

A layer's output z = W a depends on a step t along W + t V_n in two ways: it gains t V_n a_n, and it passes on what its input
gains. With kappa_z and a-dot the second backward pass's results at z and at the cotangent of a,

    v_n' (H_n v)_W = < kappa_z, V_n a_n > + < a-dot, V_n' delta_n >,      delta = dl / dz,

where that pass starts from the graph of the first one: from every delta with V_n a_n, and from every a with V_n' delta_n. No
gradient of a weight is formed. Parameters without a place for each example get one direction for all, as in any
Hessian-vector product. At the cotangent of the output J v arrives, which gives v' G v by the loss alone.

Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian" (the double backward); docs/concepts/estimators.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metacurv.estimators.activation.batch_layout import Layout
from metacurv.estimators.activation.examine import Examined
from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.graph.differentiate import (
    gradient_graph,
    hessian_vector_products,
    refuse_cut_graph,
)
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.numerics import wide, wide_dtype
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.split.places import (
    Convolution,
    Direction,
    Embedding,
    Place,
    Weight,
    make_place,
)
from metacurv.ops._reference import OpSet

Edge = tuple[int, int]


class SplitProducts:
    """A loss's graph with the graph of its gradients at the places of parameters.

    Args:
        loss: one element, with a graph.
        walk: the walk over its graph.
        examined: what is known about it.
        parameters: all parameters to be measured.
        run: the ops that draw signs.

    ``places`` holds those of each parameter that has a direction for each example, by its index. ``rows`` is the number of
    rows of a sample: one for what all examples share, and one for each example. ``apart`` is the number of examples that some
    parameter has a direction for each of, else 1. ``is_apart`` tells whether every parameter has.
    """

    def __init__(
        self,
        loss: Tensor,
        walk: Walk,
        examined: Examined,
        parameters: list[NumberedParameter],
        run: OpSet,
    ) -> None:
        self._walk, self._parameters, self._run = walk, parameters, run
        self._boundary, self._edge = examined.boundary, examined.plan.head.boundary
        examples = examined.boundary.examples
        self.places: dict[int, list[Place]] = {}
        for index, sites in examined.plan.sites.items():
            made = [make_place(site, walk, examined.layouts[site]) for site in sites]
            places = [place for place in made if place is not None]
            if len(places) == len(sites) and len({_is_matrix(place) for place in places}) == 1:
                self.places[index] = places
        self.rows = 1 + (examples if examples > 1 else 0)
        self._plain = [i for i in range(len(parameters)) if i not in self.places]
        self.apart = examples if self.places else 1
        self.is_apart = not self._plain or examples == 1
        places = [place for found in self.places.values() for place in found]
        edges: set[Edge] = {(place.node, 0) for place in places}
        edges |= {place.edge for place in places if place.edge is not None}
        self._edges = [self._edge, *sorted(edges - {self._edge})]
        inputs = [walk.edge(*edge) for edge in self._edges]
        tensors = [parameters[i].tensor for i in self._plain]
        assert loss.grad_fn is not None  # check_loss saw to it
        check_differentiable([loss.grad_fn], [p.tensor for p in parameters], again=walk.again)
        # A once-differentiable function leaves its mark only on gradients that carry a graph on arrival.
        start = torch.ones_like(loss, requires_grad=True) if walk.has_custom_functions else None
        with torch.enable_grad():
            gradients = gradient_graph(loss, [*inputs, *tensors], start=start)
        if start is not None:
            refuse_cut_graph(gradients)
        self._delta = dict(zip(self._edges, gradients[: len(inputs)], strict=True))
        self._gradients = dict(zip(self._plain, gradients[len(inputs) :], strict=True))

    def sample(self, key: int, probe: int) -> tuple[Tensor, Tensor]:
        """Returns the parts v_n' (H_n v) of a probe, float64 [rows, parameters], and v_n' G_n v_n, float64 [rows]."""
        directions = {index: self.direction(index, key, probe) for index in self.places}
        vectors = {i: self._signs(i, key, probe, 0)[0] for i in self._plain}
        roots: list[Tensor] = []
        starts: list[Tensor] = []
        gained: list[tuple[int, Place, Tensor, Tensor | None]] = []
        for index, places in self.places.items():
            for place in places:
                delta = self._delta[place.node, 0]
                if delta is None:
                    continue
                output = place.output(directions[index]).to(delta.dtype)
                if delta.requires_grad:
                    roots.append(delta)
                    starts.append(output)
                into = None
                if place.edge is not None:
                    into = place.input(directions[index], delta.detach())
                    roots.append(place.root())
                    starts.append(into)
                gained.append((index, place, output, into))
        for index, gradient in self._gradients.items():
            if gradient is not None and gradient.requires_grad:
                roots.append(gradient)
                starts.append(vectors[index].to(gradient.dtype))
        return self._read(roots, starts, gained, vectors)

    def _read(
        self,
        roots: list[Tensor],
        starts: list[Tensor],
        gained: list[tuple[int, Place, Tensor, Tensor | None]],
        vectors: dict[int, Tensor],
    ) -> tuple[Tensor, Tensor]:
        """Runs the second backward pass and reads what it brings."""
        live = [e for e in self._edges if (d := self._delta[e]) is not None and d.requires_grad]
        inputs: list[Any] = [self._walk.edge(*edge) for edge in self._edges]
        inputs += [self._delta[edge] for edge in live]
        inputs += [self._parameters[i].tensor for i in self._plain]
        found = hessian_vector_products(roots, starts, inputs)
        kappa = dict(zip(self._edges, found, strict=False))
        tangents = dict(zip(live, found[len(self._edges) :], strict=False))
        of_plain = found[len(self._edges) + len(live) :]
        parts = torch.zeros(
            self.rows, len(self._parameters), dtype=torch.float64, device=roots[0].device
        )
        for index, place, output, into in gained:
            arrived = kappa[place.node, 0]
            if arrived is not None:
                self._add(parts[:, index], arrived, output, place.layout)
            moved = None if place.edge is None else tangents.get(place.edge)
            if moved is not None and into is not None:
                self._add(parts[:, index], place.tangent(moved), into, place.layout)
        for index, product in zip(self._plain, of_plain, strict=True):
            if product is not None:
                parts[0, index] = (wide(product) * vectors[index]).sum(dtype=torch.float64)
        gauss_newton = torch.zeros(self.rows, dtype=torch.float64, device=roots[0].device)
        pushed, delta = tangents.get(self._edge), self._delta[self._edge]
        if pushed is not None and delta is not None:
            (product,) = hessian_vector_products([delta], [pushed], [self._walk.edge(*self._edge)])
            if product is not None:
                self._add(gauss_newton, product, pushed, self._boundary)
        return parts, gauss_newton

    def _add(self, rows: Tensor, x: Tensor, y: Tensor, layout: Layout) -> None:
        """Adds the inner products of the examples' parts of x and y to their rows."""
        by_example = (wide(layout.bring(a)).reshape(layout.examples, -1) for a in (x, y))
        products = torch.linalg.vecdot(*by_example)
        if layout.examples > 1:
            rows[1:] += products
        else:
            rows[0] += products[0]

    def direction(self, index: int, key: int, probe: int) -> Direction:
        """Returns the direction of a parameter with places, by its index."""
        shape = matrix_shape(self._parameters[index].tensor)
        examples = self.rows - 1
        if not _is_matrix(self.places[index][0]):
            (_, signs) = self._signs(index, key, probe, examples * math.prod(shape))
            return Direction(signs.view(examples, -1))
        shared, signs = self._signs(index, key, probe, examples * sum(shape))
        rows, columns = signs[: examples * shape[0]], signs[examples * shape[0] :]
        return Direction(rows.view(examples, -1), shared.view(shape), columns.view(examples, -1))

    def _signs(self, index: int, key: int, probe: int, more: int) -> tuple[Tensor, Tensor]:
        """Returns the signs that any probe has for a parameter, and ``more`` that follow them."""
        p = self._parameters[index]
        size = p.tensor.numel()
        signs = torch.empty(size + more, dtype=wide_dtype(p.tensor.dtype), device=p.tensor.device)
        number = torch.full((), probe, dtype=torch.int64, device=p.tensor.device)
        self._run.rademacher_([signs], key, number, [p.number], [0])
        return signs[:size].view(p.tensor.shape), signs[size:]


def matrix_shape(parameter: Tensor) -> tuple[int, ...]:
    """Returns the shape of a parameter as a matrix: the kernel of a convolution goes with the inputs."""
    shape = tuple(parameter.shape)
    return shape if len(shape) < 3 else (shape[0], math.prod(shape[1:]))


def _is_matrix(place: Place) -> bool:
    return isinstance(place, (Weight, Embedding, Convolution))

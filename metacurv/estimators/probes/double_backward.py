"""Hessian-vector products by a backward pass through the gradient's own graph (Pearlmutter 1994); it serves any graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv.estimators.graph.differentiate import hessian_vector_products
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.ops._reference import OpSet


class DoubleBackward:
    """Samples v . (H v) of every parameter, from H v.

    Args:
        gradients: one for each of ``parameters``; one without a graph means a row of H that is 0.
        parameters: all parameters to be measured.
    """

    def __init__(
        self, gradients: Sequence[Tensor | None], parameters: Sequence[NumberedParameter]
    ) -> None:
        self.parameters = list(parameters)
        live = [
            (gradient, parameter)
            for gradient, parameter in zip(gradients, parameters, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        self.gradients = [gradient for gradient, _ in live]
        self.probed = [parameter for _, parameter in live]
        self.curved: list[NumberedParameter] = []

    def products(self, vectors: Sequence[Tensor]) -> tuple[list[Tensor], list[int], list[int]]:
        """Returns H v of each parameter in ``curved``, with the numbers and offsets by which the ops know their signs.

        ``vectors``: the tensors of the probe v, one for each of ``probed``.
        """
        found = hessian_vector_products(self.gradients, vectors, [p.tensor for p in self.probed])
        # Which products exist depends on the graph only. The samples of all other parameters are exactly 0.
        self.curved = [p for h, p in zip(found, self.probed, strict=True) if h is not None]
        numbers = [p.number for p in self.curved]
        return [h for h in found if h is not None], numbers, [0] * len(numbers)

    def terms(self, vectors: Sequence[Tensor], run: OpSet, key: int, probe: Tensor) -> list[Tensor]:
        """Returns the sample of one probe, float64 [curved]."""
        products, numbers, offsets = self.products(vectors)
        return [run.signed_sum(products, key, probe, numbers, offsets)]

    def samples(self, terms: list[Tensor], count: int) -> Tensor:
        """Returns float64 [count, curved]: the samples of as many probes, from all their terms."""
        return torch.stack(terms)

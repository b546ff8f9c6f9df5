"""Hessian-vector products by a backward pass through the gradient's own graph (Pearlmutter 1994); it serves any graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.autograd.graph
from torch import Tensor

from metacurv.estimators.graph.differentiate import hessian_vector_products
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.statistics.moments import SampleMoments, StreamedMoments
from metacurv.ops._reference import OpSet


class DoubleBackward:
    """Samples v . H v of every parameter, from H v.

    Args:
        gradients: one for each of ``parameters``; one without a graph means a row of H that is 0.
        parameters: all parameters to be measured.
        keeps_samples: True where ``moments`` must give single samples, which the fused update does not.
    """

    def __init__(
        self,
        gradients: Sequence[Tensor | None],
        parameters: Sequence[NumberedParameter],
        *,
        keeps_samples: bool = False,
    ) -> None:
        self.parameters = list(parameters)
        live = [
            (gradient, parameter)
            for gradient, parameter in zip(gradients, parameters, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        self.gradients = [gradient for gradient, _ in live]
        self.probed = [parameter for _, parameter in live]
        self._keeps_samples = keeps_samples
        self.moments = self._moments([], parameters[0].tensor.device)

    def _moments(
        self, curved: Sequence[NumberedParameter], device: torch.device
    ) -> StreamedMoments | SampleMoments:
        return (SampleMoments if self._keeps_samples else StreamedMoments)(curved, device)

    def accumulate(self, vectors: Sequence[Tensor], run: OpSet, key: int, probe: Tensor) -> None:
        """Adds one sample; ``vectors`` is the probe, one tensor for each of ``probed``."""
        products = hessian_vector_products(self.gradients, vectors, [p.tensor for p in self.probed])
        curved = [p for h, p in zip(products, self.probed, strict=True) if h is not None]
        if len(curved) != len(self.moments.curved):
            # Which products exist depends on the graph only, so this happens at the first probe alone.
            self.moments = self._moments(curved, probe.device)
        found = [h for h in products if h is not None]
        numbers, offsets = [p.number for p in curved], [0] * len(curved)
        if isinstance(self.moments, SampleMoments):
            self.moments.add(run.signed_sum(found, key, probe, numbers, offsets))
            return
        moments = self.moments
        run.hutchinson_accumulate_(
            moments.mean, moments.m2, moments.count, found, key, probe, numbers, offsets
        )

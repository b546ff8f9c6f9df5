"""The curvature matrix of one batch: products with vectors, from one graph that serves all of them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv.estimators.probes.double_backward import DoubleBackward
from metacurv.estimators.probes.gauss_newton import GaussNewtonProducts
from metacurv.estimators.probes.products import choose_products
from metacurv.estimators.problem.errors import refuse_reentrant_checkpoints
from metacurv.estimators.problem.model_loss import Forward
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.select.methods import HUTCHINSON


class BatchMatrix:
    """Multiplies vectors by a batch's Hessian or Gauss-Newton matrix.

    Raises:
        ValueError: the Gauss-Newton matrix has no output to end at.
        NotTwiceDifferentiableError: an operation in the graph of the loss has no second derivative.
    """

    def __init__(self, batch: MeasuredBatch) -> None:
        against = HUTCHINSON.why_not(batch)
        if against is not None:
            raise ValueError(f"kind={batch.kind!r} cannot be measured here: {against}")
        refuse_reentrant_checkpoints(batch.node_names)
        self._batch = batch
        self._made: tuple[Forward, GaussNewtonProducts | DoubleBackward] | None = None

    def times(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        """Returns the product's part of each parameter; ``vectors``: one tensor for each, of its shape and dtype."""
        return self._batch.quietly(lambda: self._times(vectors))

    def _times(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        parameters, products = self._batch.problem.parameters, self._products()
        found: dict[str, Tensor] = {}
        if isinstance(products, GaussNewtonProducts):
            by_name = {p.name: v for p, v in zip(parameters, vectors, strict=True)}
            parts = zip(parameters, products.times(by_name), strict=True)
            found = {p.name: x for p, x in parts if x is not None}
        elif products.gradients:
            of = {p.number: v for p, v in zip(parameters, vectors, strict=True)}
            made, _, _ = products.products([of[p.number] for p in products.probed])
            found = {p.name: x for p, x in zip(products.curved, made, strict=True)}
        return [
            found[p.name] if p.name in found else torch.zeros_like(p.tensor) for p in parameters
        ]

    def _products(self) -> GaussNewtonProducts | DoubleBackward:
        """Returns what multiplies, anew where the batch has run another forward pass since."""
        forward = self._batch.forward
        if self._made is None or self._made[0] is not forward:
            with torch.enable_grad():
                self._made = forward, self._multiplying(forward)
        return self._made[1]

    def _multiplying(self, forward: Forward) -> GaussNewtonProducts | DoubleBackward:
        problem = self._batch.problem
        if self._batch.kind == "ggn":
            return GaussNewtonProducts(problem, forward)
        products = choose_products(
            forward.loss, problem.parameters, "reference", again=problem.again
        )
        # Autograd's own: they give H v, and not v . H v alone.
        assert isinstance(products, DoubleBackward)
        return products

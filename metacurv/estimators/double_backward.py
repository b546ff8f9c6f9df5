"""Hessian-vector products by a backward pass through the gradient's own graph (Pearlmutter 1994); it serves any graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.autograd.graph
from torch import Tensor

from metacurv.estimators.errors import explain_differentiation_errors
from metacurv.estimators.graph import is_cut
from metacurv.estimators.moments import SampleMoments, StreamedMoments
from metacurv.estimators.parameters import NumberedParameter
from metacurv.ops._reference import OpSet

_engine_run_backward = getattr(torch.autograd.graph, "_engine_run_backward", None)


def gradient_graph(
    loss: Tensor, inputs: Sequence[Any], *, start: Tensor | None = None
) -> list[Tensor | None]:
    """Returns gradients of ``loss`` that can be differentiated again; None where the loss does not depend on an input.

    ``torch.autograd.grad`` leaves ``.grad`` alone and builds no reference cycle, unlike ``backward(create_graph=True)``.

    Args:
        loss: one element.
        inputs: tensors or graph edges.
        start: the 1 that the backward pass starts from; one that requires a gradient makes every gradient carry a graph.

    Raises:
        ValueError: the loss depends on none of the inputs.
    """
    with explain_differentiation_errors("the gradient of loss with create_graph=True"):
        gradients = torch.autograd.grad(
            loss, list(inputs), start, create_graph=True, allow_unused=True
        )
    if all(gradient is None for gradient in gradients):
        raise ValueError("loss must depend on params, but its graph reaches none of them")
    return list(gradients)


def refuse_cut_graph(gradients: Iterable[Tensor | None]) -> None:
    """Raises NotTwiceDifferentiableError where a once-differentiable function cuts the gradient's graph."""
    with explain_differentiation_errors(
        "differentiating the gradient of loss with create_graph=True"
    ):
        if is_cut(gradients):
            raise RuntimeError(
                "trying to differentiate twice a function that was marked with @once_differentiable"
            )


def run_backward(
    outputs: Sequence[Any], inputs: Sequence[Any], vectors: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """Runs ``torch.autograd.grad`` with ``retain_graph`` and ``allow_unused``, without its checks of ``vectors``.

    The checks cost 20 us a call, 7 % of a probe on a small network, and vectors made here are right. The function below them
    is private to torch, so where it is missing the public one does the work.
    """
    if _engine_run_backward is None:
        return torch.autograd.grad(outputs, inputs, vectors, retain_graph=True, allow_unused=True)
    found: Sequence[Tensor | None] = _engine_run_backward(
        tuple(outputs),
        tuple(vectors),
        True,  # keep the graph
        False,  # make no graph of this backward pass
        tuple(inputs),
        allow_unreachable=True,
        accumulate_grad=False,
    )
    return found


def hessian_vector_products(
    gradients: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Any]
) -> Sequence[Tensor | None]:
    """Returns the gradient of sum(gradients . vectors) in ``inputs``, None where no path leads. The graph stays usable."""
    if not gradients:
        return [None] * len(inputs)
    with explain_differentiation_errors("the Hessian-vector product (gradient of gradient . v)"):
        products = run_backward(gradients, inputs, vectors)
    return [h.to_dense() if h is not None and h.is_sparse else h for h in products]


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

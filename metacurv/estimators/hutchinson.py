"""Hutchinson's estimator of the Hessian trace in parameter space, for any loss with a twice differentiable graph.

    tr H = E[v . H v],  v_i = +1 or -1 with equal probability      (Hutchinson 1990)
    Var[v . H v] = 2 (||H||_F^2 - sum_i H_ii^2)                    (Avron and Toledo 2011)

One gradient graph serves all probes; each probe costs one backward pass through it. Probes are written into one reused
copy of the parameters, and v . H v is folded into running statistics on the device, so nothing waits for the host until
the result is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv import _validate, ops
from metacurv.estimators.errors import explain_differentiation_errors
from metacurv.estimators.parameters import NumberedParameter, Parameters, number_parameters
from metacurv.estimators.trace_estimate import TraceEstimate


@dataclass(frozen=True)
class TraceReading:
    """A measurement still on the device; ``estimate()`` brings it to the host.

    ``mean``, ``m2``: float64 [T + 1], Welford's statistics of the T ``curved`` parameters and, last, of their sum.
    """

    mean: Tensor
    m2: Tensor
    n_samples: int
    seed: int
    curved: list[str]
    flat: list[str]  # parameters whose part of the trace is exactly 0

    @property
    def trace(self) -> Tensor:
        """0-dim float64."""
        return self.mean[-1]

    def estimate(self) -> TraceEstimate:
        """Copies to the host: one synchronisation on CUDA."""
        mean, m2 = torch.stack([self.mean, self.m2]).cpu()
        # With one probe the deviation is unknown, 0 / 0; without any curvature it is known to be 0.
        degrees = self.n_samples - 1 if self.curved else 1
        stderr = (m2 / degrees / self.n_samples).sqrt().tolist()
        values = mean.tolist()
        zeros = dict.fromkeys(self.flat, 0.0)
        return TraceEstimate(
            value=values[-1],
            stderr=stderr[-1],
            n_samples=self.n_samples,
            per_parameter={**dict(zip(self.curved, values[:-1], strict=True)), **zeros},
            per_parameter_stderr={**dict(zip(self.curved, stderr[:-1], strict=True)), **zeros},
            method="hutchinson",
            kind="hessian",
            seed=self.seed,
        )


def check_loss(loss: Tensor, *, finite: bool = True) -> None:
    """Raises unless ``loss`` is a real scalar with a graph (and a finite value, which costs a host sync on CUDA)."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must be a Tensor, got {_validate.describe(loss)}")
    if loss.numel() != 1:
        raise ValueError(f"loss must be a scalar, got shape {tuple(loss.shape)}")
    _validate.real_tensor("loss", loss)
    if not loss.requires_grad or loss.grad_fn is None:
        raise ValueError(
            "loss must carry a graph (be computed from the parameters with gradients enabled), got a detached tensor"
        )
    if finite and not bool(torch.isfinite(loss.detach())):
        raise ValueError(f"loss must be finite, got {loss.item()}")


def gradient_graph(loss: Tensor, parameters: Sequence[NumberedParameter]) -> list[Tensor | None]:
    """Gradients of ``loss`` that can be differentiated again; None where ``loss`` does not depend on the parameter.

    ``torch.autograd.grad`` leaves ``.grad`` alone and builds no reference cycle, unlike ``backward(create_graph=True)``.
    """
    with explain_differentiation_errors("the gradient of loss with create_graph=True"):
        gradients = torch.autograd.grad(
            loss.view(()),
            [parameter.tensor for parameter in parameters],
            create_graph=True,
            allow_unused=True,
        )
    if all(gradient is None for gradient in gradients):
        raise ValueError("loss must depend on params, but its graph reaches none of them")
    return list(gradients)


def measure(
    gradients: Sequence[Tensor | None],
    parameters: Sequence[NumberedParameter],
    *,
    seed: int,
    first_probe: int,
    n_samples: int,
    backend: str,
) -> TraceReading:
    """Averages v . H v over probes ``first_probe`` ... ``first_probe + n_samples - 1``, without a host sync.

    Args:
        gradients: one for each of ``parameters``; one without a graph means a row of H that is 0.
    """
    live = [
        (gradient, parameter)
        for gradient, parameter in zip(gradients, parameters, strict=True)
        if gradient is not None and gradient.requires_grad
    ]
    device = parameters[0].tensor.device
    probe = torch.full((), first_probe, dtype=torch.int64, device=device)
    vectors = [torch.empty(p.tensor.shape, dtype=p.tensor.dtype, device=device) for _, p in live]
    curved: list[NumberedParameter] = []
    for sample in range(n_samples):
        ops.rademacher_(
            vectors, seed=seed, probe=probe, numbers=[p.number for _, p in live], backend=backend
        )
        products = _hessian_vector_products(live, vectors)
        if sample == 0:
            # Which products exist depends on the graph only, so the first probe tells for all.
            curved = [p for h, (_, p) in zip(products, live, strict=True) if h is not None]
            mean = torch.zeros(len(curved) + 1, dtype=torch.float64, device=device)
            m2 = torch.zeros_like(mean)
            count = torch.zeros((), dtype=torch.int64, device=device)
        ops.hutchinson_accumulate_(
            mean,
            m2,
            count,
            [product for product in products if product is not None],
            seed=seed,
            probe=probe,
            numbers=[p.number for p in curved],
            backend=backend,
        )
        probe.add_(1)
    names = {parameter.name for parameter in curved}
    return TraceReading(
        mean=mean,
        m2=m2,
        n_samples=n_samples,
        seed=seed,
        curved=[parameter.name for parameter in curved],
        flat=[parameter.name for parameter in parameters if parameter.name not in names],
    )


def _hessian_vector_products(
    live: Sequence[tuple[Tensor, NumberedParameter]], vectors: Sequence[Tensor]
) -> Sequence[Tensor | None]:
    """H v, one for each parameter; None where the gradient's graph does not reach it. The graph stays usable."""
    if not live:
        return []
    with explain_differentiation_errors("the Hessian-vector product (gradient of gradient . v)"):
        return torch.autograd.grad(
            [gradient for gradient, _ in live],
            [parameter.tensor for _, parameter in live],
            vectors,
            retain_graph=True,
            allow_unused=True,
        )


def hessian_trace(
    loss: Tensor,
    params: Parameters,
    *,
    n_samples: int = 1,
    seed: int = 0,
    backend: str = "auto",
) -> TraceEstimate:
    """Trace of the Hessian of ``loss`` in ``params`` by Hutchinson's method, with its standard error.

    Leaves the graph of ``loss`` usable (``loss.backward()`` still works), and leaves ``.grad``, the random state and the
    modes of the model alone. Memory beyond the double-backward graph: one copy of the parameters, whatever ``n_samples``.

    Args:
        loss: one element, with a graph that can be differentiated twice.
        params: what to differentiate in: tensors, (name, tensor) pairs (``model.named_parameters()``), or a mapping.
            Frozen parameters are left out, repeated ones count once, unused ones have trace 0.
        n_samples: number of probes, >= 1. The standard error falls as 1 / sqrt(n_samples).
        seed: int in [0, 2^64). The same seed gives the same probes on every device, dtype and thread count. Parameters are
            numbered by position, probes from 0.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).

    Returns:
        A ``TraceEstimate``; its ``stderr`` is nan for one probe.

    Raises:
        TypeError: ``loss`` is no real tensor; a parameter is sparse, complex or of an integer type.
        ValueError: ``loss`` is not a finite scalar with a graph that reaches ``params``; ``params`` is empty, frozen or on
            several devices; a number is out of range.
        NotTwiceDifferentiableError: an operation in the graph has no second derivative.

    Source: Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".

    Example:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> estimate = hessian_trace((w ** 2).sum(), [w], n_samples=2)  # H = 2 I: every probe gives 4
        >>> estimate.value, estimate.stderr
        (4.0, 0.0)
    """
    samples = _validate.integer("n_samples", n_samples, low=1, high=1 << 32)
    checked_seed = _validate.seed(seed)
    _validate.backend(backend)
    parameters = number_parameters(params)
    check_loss(loss)
    gradients = gradient_graph(loss, parameters)
    return measure(
        gradients,
        parameters,
        seed=checked_seed,
        first_probe=0,
        n_samples=samples,
        backend=backend,
    ).estimate()

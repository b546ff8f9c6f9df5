"""Hutchinson's estimator of the Hessian trace in parameter space, for any loss with a twice differentiable graph.

    tr H = E[v . H v],  v_i = +1 or -1 with equal probability      (Hutchinson 1990)
    Var[v . H v] = 2 (||H||_F^2 - sum_i H_ii^2)                    (Avron and Toledo 2011)

The graph decides how v . H v is formed (``hessian_products``). Probes are written into one reused copy of the parameters,
and v . H v is folded into running statistics on the device, so nothing waits for the host until the result is read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate, ops
from metacurv.estimators.batch_sums import BatchSums
from metacurv.estimators.hessian_products import Products, choose_products
from metacurv.estimators.loss_checks import check_loss, without_hooks
from metacurv.estimators.moments import TraceReading
from metacurv.estimators.parameters import NumberedParameter, Parameters, number_parameters
from metacurv.estimators.sampling import Summary
from metacurv.estimators.trace_estimate import TraceEstimate
from metacurv.processes.ranks import Ranks


class ProbeLoop:
    """Adds samples v . H v to ``products.moments``, without a host sync; the probe's buffers serve all of them."""

    def __init__(self, products: Products, *, seed: int, backend: str) -> None:
        self._products = products
        self._device = products.parameters[0].tensor.device
        self._run = ops.implementation(backend, self._device)
        self._key = ops.as_int64(seed)
        self._numbers = [p.number for p in products.probed]
        self._vectors = [
            torch.empty(p.tensor.shape, dtype=p.tensor.dtype, device=self._device)
            for p in products.probed
        ]

    def add(self, first_probe: int, n_samples: int) -> None:
        """Adds the samples of probes ``first_probe`` ... ``first_probe + n_samples - 1``."""
        probe = torch.full((), first_probe, dtype=torch.int64, device=self._device)
        offsets = [0] * len(self._numbers)
        for _ in range(n_samples):
            self._run.rademacher_(self._vectors, self._key, probe, self._numbers, offsets)
            self._products.accumulate(self._vectors, self._run, self._key, probe)
            probe.add_(1)


def read_trace(
    products: Products, *, seed: int, first_probe: int, n_samples: int, backend: str
) -> TraceReading:
    """Averages v . H v over probes ``first_probe`` ... ``first_probe + n_samples - 1``, without a host sync."""
    ProbeLoop(products, seed=seed, backend=backend).add(first_probe, n_samples)
    mean, m2 = products.moments.moments()
    return TraceReading(
        mean=mean,
        m2=m2,
        curved=[p.name for p in products.moments.curved],
        names=[p.name for p in products.parameters],
        n_samples=n_samples,
        seed=seed,
    )


def trace_of_loss(
    loss: Tensor,
    parameters: list[NumberedParameter],
    *,
    seed: int,
    first_probe: int,
    n_samples: int,
    backend: str,
) -> TraceReading:
    """Calls ``read_trace`` with the fastest products for a checked ``loss`` (on the reference backend autograd's)."""
    # Backward passes take the dtypes that the forward pass chose; an autocast region around them would change these.
    # Nor can they run in inference mode, which records nothing.
    with (
        torch.autocast(loss.device.type, enabled=False),
        torch.inference_mode(False),
        without_hooks(parameters),
    ):
        products = choose_products(loss, parameters, backend)
        return read_trace(
            products, seed=seed, first_probe=first_probe, n_samples=n_samples, backend=backend
        )


def hessian_trace(
    loss: Tensor,
    params: Parameters,
    *,
    n_samples: int = 1,
    seed: int = 0,
    backend: str = "auto",
    process_group: Any = None,
) -> TraceEstimate:
    """Estimates the trace of the Hessian of ``loss`` in ``params`` by Hutchinson's method, with its standard error.

    The trace tr H = E[v . H v], with v a random sign vector (a probe), is averaged over ``n_samples`` probes. Each costs a
    Hessian-vector product, about as much as two backward passes. The function leaves the graph of ``loss`` usable
    (``loss.backward()`` still works), and does not change ``.grad``, the random state or the modes of the model. Memory does
    not grow with ``n_samples``: it is at most one copy of the parameters more than a double backward takes.

    Args:
        loss: one element, with a graph that can be differentiated twice.
        params: the parameters to differentiate in: tensors, (name, tensor) pairs (``model.named_parameters()``), or a mapping.
            Frozen parameters are left out, repeated ones count once, unused ones have trace 0.
        n_samples: number of probes, >= 1. The standard error falls as 1 / sqrt(n_samples).
        seed: int in [0, 2^64). The same seed gives the same probes on every device, dtype and thread count. Parameters are
            numbered by position, probes from 0.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        process_group: the ranks that measure together, each of them its own loss by probes of its own, and get one result, the
            mean: None for all processes where ``torch.distributed`` is initialised, which must then all call; a group of
            ``torch.distributed``; or False for this process alone.

    Returns:
        The estimate, in units of the loss over the parameters' units squared; its ``stderr`` is nan for one probe.

    Raises:
        TypeError: ``loss`` is no real tensor; a parameter is sparse, complex or of an integer type.
        ValueError: ``loss`` is not a finite scalar with a graph that reaches ``params``; ``params`` is empty, frozen or on
            several devices; a number is out of range.
        NotTwiceDifferentiableError: an operation in the graph has no second derivative.
        RuntimeError: ``backend="native"`` and no kernels were compiled for the device, or measuring failed on another rank.

    References:
        - Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".
        - Avron and Toledo 2011, "Randomized algorithms for estimating the trace of an implicit symmetric positive
          semi-definite matrix" (variance).
        - Pearlmutter 1994, "Fast exact multiplication by the Hessian".

    Examples:
        >>> w = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> estimate = hessian_trace((w ** 2).sum(), [w], n_samples=2)  # H = 2 I: every probe gives 4
        >>> estimate.value, estimate.stderr
        (4.0, 0.0)
    """
    samples = _validate.integer("n_samples", n_samples, low=1, high=1 << 32)
    checked_seed = _validate.seed(seed)
    _validate.backend(backend)
    parameters, ranks = number_parameters(params), Ranks(None, process_group)

    def measure_here() -> TraceEstimate:
        check_loss(loss)
        return trace_of_loss(
            loss,
            parameters,
            seed=checked_seed,
            first_probe=ranks.here * samples % (1 << 32),
            n_samples=samples,
            backend=backend,
        ).estimate()

    if ranks.count == 1:
        return measure_here()
    return _mean_over(ranks, measure_here, parameters)


def _mean_over(
    ranks: Ranks, measure: Callable[[], TraceEstimate], parameters: list[NumberedParameter]
) -> TraceEstimate:
    """Returns the mean of what all ranks estimate; their errors are independent."""
    sums = BatchSums(len(parameters) + 1, is_sum=False)
    estimates: list[TraceEstimate] = []

    def measure_here() -> None:
        found = measure()
        estimates.append(found)
        mean = [*found.per_parameter.values(), found.value]
        stderr = [*found.per_parameter_stderr.values(), found.stderr]
        of_rank = Summary(mean, stderr, found.n_samples, converged=True)
        sums.add(1, (found.method, found.why, of_rank))

    sums.over(ranks, measure_here, parameters[0].tensor.device)
    names, together = [p.name for p in parameters], sums.combined
    return replace(
        estimates[0],
        value=together.mean[-1],
        stderr=together.stderr[-1],
        n_samples=together.n_samples,
        per_parameter=dict(zip(names, together.mean, strict=False)),
        per_parameter_stderr=dict(zip(names, together.stderr, strict=False)),
    )

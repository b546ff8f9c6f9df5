"""The trace of a loss's Hessian by Hutchinson's estimator, for any loss with a twice differentiable graph."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from metacurv import _validate
from metacurv.estimators.probes.hutchinson import trace_of_loss
from metacurv.estimators.problem.batches import BatchSums, Summary
from metacurv.estimators.problem.model_loss import check_loss
from metacurv.estimators.problem.parameters import Parameters, number_parameters
from metacurv.estimators.problem.results import TraceEstimate
from metacurv.processes.ranks import Ranks


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
        >>> import torch
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
    sums = BatchSums(is_sum=False)  # errors of ranks are independent
    estimates: list[TraceEstimate] = []

    def add_here() -> None:
        found = measure_here()
        estimates.append(found)
        mean = [*found.per_parameter.values(), found.value]
        stderr = [*found.per_parameter_stderr.values(), found.stderr]
        summary = Summary(mean, stderr, found.n_samples, converged=True)
        sums.add(1, (found.method, found.why, summary))

    sums.over(ranks, add_here, len(parameters) + 1, parameters[0].tensor.device)
    names, together = [p.name for p in parameters], sums.combined
    return replace(
        estimates[0],
        value=together.mean[-1],
        stderr=together.stderr[-1],
        n_samples=together.n_samples,
        per_parameter=dict(zip(names, together.mean, strict=False)),
        per_parameter_stderr=dict(zip(names, together.stderr, strict=False)),
    )

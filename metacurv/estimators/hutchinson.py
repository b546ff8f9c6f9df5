"""Hutchinson's estimator of the Hessian trace in parameter space, for any loss with a twice differentiable graph.

    tr H = E[v . H v],  v_i = +1 or -1 with equal probability      (Hutchinson 1990)
    Var[v . H v] = 2 (||H||_F^2 - sum_i H_ii^2)                    (Avron and Toledo 2011)

How v . H v is formed depends on the graph. Through stacks of known layers a probe is pushed and pulled by rules
(``forward_over_reverse``). Else one gradient graph serves all probes, and each costs one backward pass through it
(``double_backward``, and always so on the reference backend), less what the factors of linear layers save (``linear_factors``).
Probes are written into one reused copy of the parameters, and v . H v is folded into running statistics on the device, so
nothing waits for the host until the result is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

import torch
from torch import Tensor

from metacurv import _validate, ops
from metacurv.estimators.double_backward import (
    DoubleBackward,
    gradient_graph,
    refuse_cut_graph,
)
from metacurv.estimators.errors import NotApplicable, explain_differentiation_errors
from metacurv.estimators.forward_over_reverse import ForwardOverReverse
from metacurv.estimators.graph import LossGraph
from metacurv.estimators.linear_factors import FactoredDoubleBackward, worth_factoring
from metacurv.estimators.linear_uses import find_linear_uses
from metacurv.estimators.moments import TraceReading
from metacurv.estimators.parameters import NumberedParameter, Parameters, number_parameters
from metacurv.estimators.tangent_plan import plan_tangents
from metacurv.estimators.trace_estimate import TraceEstimate

# Ways to v . (H v) of every parameter, probe by probe; they agree up to rounding.
Products = DoubleBackward | FactoredDoubleBackward | ForwardOverReverse


def check_loss(loss: Tensor, *, finite: bool = True) -> None:
    """Raises unless ``loss`` is a real scalar with a graph (and a finite value, which costs a host sync on CUDA)."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must be a Tensor, got {_validate.describe(loss)}")
    if loss.numel() != 1:
        raise ValueError(f"loss must be a scalar, got shape {tuple(loss.shape)}")
    _validate.real_tensor("loss", loss)
    if not loss.requires_grad or loss.grad_fn is None:
        got = "a leaf" if loss.requires_grad else "a detached tensor"
        raise ValueError(
            f"loss must carry a graph (be computed from the parameters with gradients enabled), got {got}"
        )
    if loss.is_meta:
        raise ValueError("loss must hold a value, got a tensor on the meta device")
    if finite and not bool(torch.isfinite(loss.detach())):
        raise ValueError(f"loss must be finite, got {loss.item()}")


def read_trace(
    products: Products,
    *,
    seed: int,
    first_probe: int,
    n_samples: int,
    backend: str,
) -> TraceReading:
    """Averages v . H v over probes ``first_probe`` ... ``first_probe + n_samples - 1``, without a host sync."""
    probed = products.probed
    device = products.parameters[0].tensor.device
    run = ops.implementation(backend, device)
    probe = torch.full((), first_probe, dtype=torch.int64, device=device)
    vectors = [torch.empty(p.tensor.shape, dtype=p.tensor.dtype, device=device) for p in probed]
    numbers = [p.number for p in probed]
    offsets = [0] * len(probed)
    key = ops.as_int64(seed)
    for _ in range(n_samples):
        run.rademacher_(vectors, key, probe, numbers, offsets)
        products.accumulate(vectors, run, key, probe)
        probe.add_(1)
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
    """``read_trace`` for a checked ``loss``, the fastest way that serves its graph (on the reference backend autograd's)."""
    # Backward passes take the dtypes that the forward pass chose; an autocast region around them would change these.
    # Nor can they run in inference mode, which records nothing.
    with (
        torch.autocast(loss.device.type, enabled=False),
        torch.inference_mode(False),
        _without_hooks(parameters),
    ):
        products = _products(loss, parameters, backend)
        return read_trace(
            products, seed=seed, first_probe=first_probe, n_samples=n_samples, backend=backend
        )


@contextmanager
def _without_hooks(parameters: Sequence[NumberedParameter]) -> Iterator[None]:
    """A reading is not the user's backward pass: gradient hooks on leaf parameters must neither run nor change it."""
    hooked = [(p.tensor, p.tensor._backward_hooks) for p in parameters if p.tensor._backward_hooks]
    try:
        for tensor, _ in hooked:
            tensor._backward_hooks = None
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks


def _products(loss: Tensor, parameters: list[NumberedParameter], backend: str) -> Products:
    assert loss.grad_fn is not None  # check_loss saw to it
    graph = LossGraph(loss.grad_fn)
    # A once-differentiable function leaves its mark only on gradients that carry a graph on arrival.
    start = torch.ones_like(loss, requires_grad=True) if graph.has_python_functions else None
    products = None if backend == "reference" else _fast(loss, graph, parameters, backend, start)
    if products is None:
        gradients = gradient_graph(loss, [p.tensor for p in parameters], start=start)
        products = DoubleBackward(gradients, parameters)
    if start is not None:
        refuse_cut_graph(products.gradients)
    return products


def _fast(
    loss: Tensor,
    graph: LossGraph,
    parameters: list[NumberedParameter],
    backend: str,
    start: Tensor | None,
) -> Products | None:
    """The first that serves: without a gradient's graph, for a stack of known layers; by the factors of linear layers."""
    uses = find_linear_uses(graph, parameters)
    with suppress(NotApplicable):
        with explain_differentiation_errors("reading what the forward pass saved"), torch.no_grad():
            steps = plan_tangents(graph, parameters, uses, backend)
        if steps is not None:
            return ForwardOverReverse(loss, parameters, steps, start=start)
    with suppress(NotApplicable):
        light = worth_factoring(uses, graph, parameters)
        if light:
            return FactoredDoubleBackward(loss, parameters, light, backend=backend, start=start)
    return None


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
    modes of the model alone. Memory does not grow with ``n_samples``: it is at most one copy of the parameters more than a
    double backward takes.

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
    return trace_of_loss(
        loss, parameters, seed=checked_seed, first_probe=0, n_samples=samples, backend=backend
    ).estimate()

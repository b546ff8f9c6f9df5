"""The trace of a whole model's Hessian or Gauss-Newton matrix, by the cheapest method that is right for it."""

from __future__ import annotations

import math
import operator
from typing import Any, Literal

from torch import nn

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.batches import adds_up, batches, checked_size, in_batch
from metacurv.estimators.choice import choose_and_measure, measure_by_name
from metacurv.estimators.methods import METHODS
from metacurv.estimators.model_loss import LossFunction, ModelLoss
from metacurv.estimators.opened import Opened
from metacurv.estimators.parameters import NumberedParameter, number_parameters
from metacurv.estimators.sampling import Budget, Groups, Summary
from metacurv.estimators.trace_estimate import TraceEstimate

Method = Literal["auto", "exact", "activation", "taylor", "hutchinson", "finite_difference"]

_DEFAULT_RTOL = 0.05
_SEED_STEP = 0x9E3779B97F4A7C15  # odd, so that no two batches share a seed


def estimate_trace(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any = None,
    *,
    kind: Literal["hessian", "ggn"] = "hessian",
    method: Method = "auto",
    n_samples: int | None = None,
    rtol: float | None = None,
    max_samples: int = 10_000,
    seed: int = 0,
    max_memory: int = 1 << 30,
    backend: str = "auto",
) -> TraceEstimate:
    """Measures the trace of the Hessian or Gauss-Newton matrix (GGN) of ``loss_fn(model(inputs), targets)``.

    The matrix is taken in all parameters of the model that require a gradient, and its trace has the unit of the loss over the
    parameters' units squared. The methods, from the fastest at a given error to the most general
    (``docs/concepts/estimators.md`` derives them):

    - "exact": no sampling error. It serves the GGN of any model; the Hessian of networks that are linear in pieces (ReLU ...),
      where both are the same almost everywhere, and of plain stacks of linear layers and smooth activations under
      cross-entropy. It takes one backward pass to the layers for each column of the loss's factor (classes - 1).
    - "activation": one random backward pass to the layers a sample, two through smooth activations. It serves the GGN of any
      model; the Hessian where all that lies above a parameter is linear, linear in pieces, or elementwise.
    - "taylor": Hutchinson's samples in second-order forward mode, for stacks of known layers (totals only).
    - "hutchinson": samples in parameter space, for any loss that can be differentiated twice.
    - "finite_difference": two gradients a sample, for any model that has a gradient. The model should be smooth: differences
      see kinks, such as ReLU's, as curvature.
    - "auto": the first of exact, activation, hutchinson, finite_difference that is right for this model, loss and kind, as the
      graph of its loss tells; ``why`` of the result gives the reason.

    The model's state stays as it was: ``.grad``, modes, buffers and random numbers; dropout draws one mask for all passes.

    Args:
        model: the model; its parameters that require a gradient are measured.
        loss_fn: called with the model's output and the targets; returns a scalar, a mean or a sum over the examples.
        inputs: a batch: the model's argument; a tuple of them; or a mapping of keyword arguments. Or, with ``targets=None``,
            an iterable of (inputs, targets) pairs such as a data loader: its batches are weighted by their numbers of examples
            (added up where ``loss_fn.reduction == "sum"``).
        targets: the second argument of ``loss_fn``.
        kind: "hessian" or "ggn".
        method: one of the methods above. One that is named and not right for the model raises ValueError.
        n_samples: number of samples to draw, >= 1; with ``rtol`` the least number.
        rtol: in (0, 1): samples are drawn until the standard error is at most this share of the value, 16 at least. The default
            is 0.05 where ``n_samples`` is not given either. Among several batches each must reach it.
        max_samples: the number of samples, >= 1, at which ``rtol`` is given up, with a warning and ``converged`` False.
        seed: int in [0, 2^64). The same seed gives the same samples; the global random state is not used.
        max_memory: bytes that "exact" and "activation" may take for cotangents at a time, on top of the model's graph.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).

    Returns:
        The trace with its standard error, its parts by parameter and by layer and their errors, the method and the reason for
            it.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the loss is not a finite scalar with a graph that reaches the parameters; the
            named method is not right for the model; there are no batches.
        NotTwiceDifferentiableError: ``method="hutchinson"`` and an operation has no second derivative; or ``method="auto"``,
            only finite differences remain, and the model has kinks, which these would count as curvature.
        RuntimeError: ``backend="native"`` and no kernels were compiled for the device.

    References:
        - Hutchinson 1990, "A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines".
        - Dangel, Harmeling, Hennig 2020, "Modular block-diagonal curvature approximations" (activation space).

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 3)
        >>> x, y = torch.ones(4, 2), torch.tensor([0, 1, 2, 0])
        >>> estimate = estimate_trace(model, torch.nn.CrossEntropyLoss(), x, y)
        >>> estimate.method, estimate.stderr
        ('exact', 0.0)
    """
    budget = _check(model, loss_fn, kind, method, n_samples, rtol, max_samples)
    _validate.backend(backend)
    checked_seed = _validate.seed(seed)
    memory = _validate.integer("max_memory", max_memory, low=1)
    parameters = number_parameters(model.named_parameters(), of_model=True)
    results: list[tuple[int, tuple[str, str, Summary]]] = []
    is_sum = adds_up(loss_fn)
    layers = _layers(parameters)
    # Taylor mode gives totals only.
    groups = Groups([], 1) if method == "taylor" else Groups([*layers.values()], len(parameters))
    for batch_inputs, batch_targets in batches(inputs, targets):
        size = checked_size(batch_inputs, len(results), is_sum)
        problem = ModelLoss(model, loss_fn, batch_inputs, batch_targets, parameters)
        # Batches draw probes of their own: the same ones would tie their errors together.
        batch_seed = (checked_seed + len(results) * _SEED_STEP) % (1 << 64)
        opened = Opened(problem, kind, batch_seed, backend, memory)
        with in_batch(len(results)):
            if method == "auto":
                found = choose_and_measure(opened, groups, budget)
            else:
                found = measure_by_name(method, opened, groups, budget)
        results.append((size, found))
    if not results:
        raise ValueError("inputs must give at least one batch, got none")
    names = [] if method == "taylor" else [parameter.name for parameter in parameters]
    return _combine(
        results, names, list(layers) if names else [], kind, checked_seed, is_sum, budget.rtol
    )


def _check(
    model: object,
    loss_fn: object,
    kind: object,
    method: object,
    n_samples: object,
    rtol: object,
    max_samples: object,
) -> Budget:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {_validate.describe(model)}")
    _validate.loss_function(loss_fn)
    if kind not in ("hessian", "ggn"):
        raise ValueError(f"kind must be 'hessian' or 'ggn', got {_validate.describe(kind)}")
    if method not in ("auto", *METHODS):
        raise ValueError(
            f"method must be one of auto, {', '.join(METHODS)}, got {_validate.describe(method)}"
        )
    most = _validate.integer("max_samples", max_samples, low=1, high=1 << 32)
    least = None
    if n_samples is not None:
        least = _validate.integer("n_samples", n_samples, low=1, high=1 << 32)
    tolerance = None
    if rtol is not None:
        tolerance = _validate.real("rtol", rtol, low=0, below=1)
        if tolerance == 0:
            raise ValueError(
                "rtol must be > 0 and < 1, got 0.0 (method='exact' has no sampling error)"
            )
        if least is not None and least > most:
            raise ValueError(
                f"max_samples must be at least n_samples={least} where rtol is given, got {most}"
            )
    elif least is None:
        tolerance = _DEFAULT_RTOL
    return Budget(least, tolerance, most)


def _layers(parameters: list[NumberedParameter]) -> dict[str, list[int]]:
    """Maps the names of the modules that own parameters to the parameters' indices."""
    layers: dict[str, list[int]] = {}
    for index, parameter in enumerate(parameters):
        layers.setdefault(parameter.name.rpartition(".")[0], []).append(index)
    return layers


def _combine(
    results: list[tuple[int, tuple[str, str, Summary]]],
    names: list[str],
    layers: list[str],
    kind: str,
    seed: int,
    is_sum: bool,
    rtol: float | None,
) -> TraceEstimate:
    """Combines the batches' traces, weighted by their sizes; their errors are independent."""
    summaries = [summary for _, (_, _, summary) in results]
    mean, error = summaries[0].mean, summaries[0].stderr
    if len(results) > 1:
        total_size = sum(size for size, _ in results)
        weights = [1.0 if is_sum else size / total_size for size, _ in results]
        by_part = zip(*(summary.mean for summary in summaries), strict=True)
        mean = [sum(map(operator.mul, weights, values)) for values in by_part]
        by_part = zip(*(summary.stderr for summary in summaries), strict=True)
        error = [math.hypot(*map(operator.mul, weights, errors)) for errors in by_part]
    methods = list(dict.fromkeys(method for _, (method, _, _) in results))
    why = " | ".join(dict.fromkeys(why for _, (_, why, _) in results))
    n_samples = sum(summary.n_samples for summary in summaries)
    each_converged = all(summary.converged for summary in summaries)
    converged = each_converged
    if rtol is not None and len(results) > 1:
        converged = error[-1] <= rtol * abs(mean[-1])
    if not math.isfinite(mean[-1]):
        why += f"; the trace is not finite ({mean[-1]})"
        warn_user("estimate_trace found a trace that is not finite: see per_parameter", UserWarning)
    elif not converged and each_converged:
        why += "; each batch reached rtol, but their traces cancel"
        warn_user(
            f"estimate_trace found batches whose traces cancel, to {mean[-1]:.6g} with a standard error of {error[-1]:.3g}: "
            "each reached rtol, their mean did not; ask for n_samples or a smaller rtol",
            UserWarning,
        )
    elif not converged:
        why += f"; stopped by max_samples after {n_samples} samples, before rtol was reached"
        warn_user(
            f"estimate_trace stopped at max_samples with a standard error of {error[-1]:.3g} on {mean[-1]:.6g}; "
            "the value is honest but rougher than rtol",
            UserWarning,
        )
    sums = slice(len(names), len(names) + len(layers))
    return TraceEstimate(
        value=mean[-1],
        stderr=error[-1],
        n_samples=n_samples,
        per_parameter=dict(zip(names, mean[: len(names)], strict=True)),
        per_parameter_stderr=dict(zip(names, error[: len(names)], strict=True)),
        method=" and ".join(methods),
        kind=kind,
        seed=seed,
        per_layer=dict(zip(layers, mean[sums], strict=True)),
        per_layer_stderr=dict(zip(layers, error[sums], strict=True)),
        why=why,
        converged=converged,
    )

"""The trace of a whole model's Hessian or Gauss-Newton matrix, by the cheapest method that is right for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.batches import BatchSums, batch_seed, in_batch
from metacurv.estimators.problem.data import Data, Kind, check_matrix
from metacurv.estimators.problem.model_loss import LossFunction
from metacurv.estimators.problem.parameters import Layers, number_parameters
from metacurv.estimators.problem.progress import check_progress
from metacurv.estimators.problem.results import TraceEstimate
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.select.methods import METHODS, measure
from metacurv.estimators.statistics.stopping import Budget
from metacurv.processes.fully_sharded import as_one_process
from metacurv.processes.ranks import Ranks

Method = Literal["auto", "exact", "activation", "split", "hutchinson", "finite_difference"]

_DEFAULT_RTOL = 0.05


def estimate_trace(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any = None,
    *,
    kind: Kind = "hessian",
    method: Method = "auto",
    n_samples: int | None = None,
    rtol: float | None = None,
    max_samples: int = 10_000,
    seed: int = 0,
    max_memory: int = 1 << 30,
    backend: str = "auto",
    process_group: Any = None,
    output: Callable[[Any], Any] | None = None,
    batch_size: int | Callable[[Any], int] | None = None,
    progress: bool | None = None,
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
    - "split": samples of a smooth network's Hessian, each with directions of its own for every example, and with the
      Gauss-Newton matrix as a control variate where the first samples show that it pays.
    - "hutchinson": samples in parameter space, for any loss that can be differentiated twice.
    - "finite_difference": two gradients a sample, for any model that has a gradient. The model should be smooth: differences
      see kinks, such as ReLU's, as curvature.
    - "auto": the cheapest of those that are right for this model, loss and kind, as the graph of its loss tells; ``why`` of the
      result gives the reason.

    The model's state stays as it was: ``.grad``, modes, buffers and random numbers; dropout draws one mask for all passes.
    A model of ``fully_shard`` is gathered while it is measured.

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
        rtol: in (0, 1): samples are drawn until the standard error is at most this share of the value, and is itself known from
            15 degrees of freedom (16 samples, or fewer where examples are told apart). The default is 0.05 where ``n_samples``
            is not given either. Among several batches each must reach it.
        max_samples: the number of samples, >= 1, at which ``rtol`` is given up, with a warning and ``converged`` False.
        seed: int in [0, 2^64). The same seed gives the same samples; the global random state is not used.
        max_memory: bytes that "exact" and "activation" may take for cotangents at a time, on top of the model's graph.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        process_group: the ranks that measure together, each of them its own batches, and get one result: None for all processes
            where ``torch.distributed`` is initialised, which must then all call (the model's own group where it is a
            ``DistributedDataParallel``); a group of ``torch.distributed``; or False for this process alone.
        output: a function that picks from the model's output what ``loss_fn`` gets, such as ``lambda out: out.logits``. Without
            it ``loss_fn`` gets the whole output; of output objects with ``logits``, as transformers has them, the GGN is
            taken at these.
        batch_size: the number of examples in a batch, or a function of its inputs that returns it, by which several batches
            are weighted; the length of the first tensor in the inputs where it is not given.
        progress: True for a progress bar, False for none; None for one on work of more than three seconds in a terminal.

    Returns:
        The trace with its standard error, its parts by parameter and by layer and their errors, the method and the reason for
            it.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the loss is not a finite scalar with a graph that reaches the parameters; the
            named method is not right for the model; there are no batches.
        NotTwiceDifferentiableError: ``method="hutchinson"`` and an operation has no second derivative; or ``method="auto"``,
            only finite differences remain, and the model has kinks, which these would count as curvature.
        ImportError: ``progress`` is True, and tqdm is not installed.
        RuntimeError: ``backend="native"`` and no kernels were compiled for the device, or measuring failed on another rank.

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
    data = Data(model, loss_fn, inputs, targets, output, batch_size)
    are_processes = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = Ranks(model, process_group) if are_processes or process_group is not None else None
    here, count = (0, 1) if ranks is None else (ranks.here, ranks.count)
    if progress is not None:
        check_progress(progress)
    budget = replace(budget, progress=progress)
    with as_one_process(model) if are_processes else nullcontext():
        parameters = number_parameters(model.named_parameters(), of_model=True)
        layers = Layers(parameters)
        found = BatchSums(is_sum=data.is_sum)

        def measure_here() -> None:
            for index, (size, problem) in enumerate(data.each(parameters)):
                of_batch = batch_seed(checked_seed, index * count + here)
                batch = MeasuredBatch(problem, kind, of_batch, backend, memory)
                with in_batch(index):
                    found.add(size, measure(method, batch, layers, budget))
            if not found.count:
                raise ValueError("inputs must give at least one batch, got none")

        if ranks is None or count == 1:
            measure_here()
        else:
            found.over(ranks, measure_here, layers.columns, parameters[0].tensor.device)
    names = [parameter.name for parameter in parameters]
    return _estimate(found, names, layers.names, kind, checked_seed, budget.rtol)


def _check(
    model: object,
    loss_fn: object,
    kind: object,
    method: object,
    n_samples: object,
    rtol: object,
    max_samples: object,
) -> Budget:
    check_matrix(model, loss_fn, kind)
    if method not in ("auto", *METHODS):
        raise ValueError(
            f"method must be one of auto, {', '.join(METHODS)}, got {_validate.describe(method)}"
        )
    most = _validate.integer("max_samples", max_samples, low=1, high=1 << 32)
    least = (
        0 if n_samples is None else _validate.integer("n_samples", n_samples, low=1, high=1 << 32)
    )
    tolerance = None if least else _DEFAULT_RTOL
    if rtol is not None:
        tolerance = _validate.real("rtol", rtol, low=0, below=1)
        if tolerance == 0:
            raise ValueError(
                "rtol must be > 0 and < 1, got 0.0 (method='exact' has no sampling error)"
            )
        if least > most:
            raise ValueError(
                f"max_samples must be at least n_samples={least} where rtol is given, got {most}"
            )
    first = least if tolerance is None else min(most, max(1, least))
    return Budget(first, tolerance, most)


def _estimate(
    found: BatchSums,
    names: list[str],
    layers: list[str],
    kind: str,
    seed: int,
    rtol: float | None,
) -> TraceEstimate:
    """Makes the result of the batches' traces, and warns where it is not what was asked for."""
    combined, why = found.combined, found.why
    mean, error, n_samples = combined.mean, combined.stderr, combined.n_samples
    converged = each_converged = combined.converged
    if rtol is not None and found.count > 1:
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
        method=found.method,
        kind=kind,
        seed=seed,
        per_layer=dict(zip(layers, mean[sums], strict=True)),
        per_layer_stderr=dict(zip(layers, error[sums], strict=True)),
        why=why,
        converged=converged,
    )

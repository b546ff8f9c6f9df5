"""The diagonal of a whole model's Hessian or Gauss-Newton matrix, with a standard error for each entry."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.batches import in_batch
from metacurv.estimators.problem.data import Kind
from metacurv.estimators.problem.model_loss import LossFunction
from metacurv.estimators.problem.parameters import layers_of
from metacurv.estimators.problem.progress import Bar, bar, check_progress
from metacurv.estimators.spectrum.diagonals import (
    NAMES,
    DiagonalMethod,
    choose,
    exact_diagonal,
    norms,
    sampled_diagonal,
    with_layers,
)
from metacurv.estimators.spectrum.matrix import Matrix, make_matrix
from metacurv.estimators.spectrum.results import Diagonal
from metacurv.estimators.statistics.moments import DEGREES
from metacurv.estimators.statistics.stopping import Budget

_DEFAULT_SAMPLES = 100


def diagonal(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any = None,
    *,
    kind: Kind = "hessian",
    method: DiagonalMethod = "auto",
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
) -> Diagonal:
    """Measures the diagonal of the Hessian or Gauss-Newton matrix (GGN) of ``loss_fn(model(inputs), targets)``.

    The methods are those of ``estimate_trace``, and each serves the same models:

    - "exact": every column of the loss's factor, squared; no sampling error.
    - "activation": a random combination of columns a sample, in activation space.
    - "hutchinson": v_i (H v)_i with a random sign vector v a sample.
    - "auto": the cheapest of those that are right for this model, loss and kind; ``why`` of the result gives the reason.

    A sample of an entry is as noisy as the rest of its row is large, so sampled entries need many more samples than a trace.
    The model's state stays as it was, as for ``estimate_trace``.

    Args:
        model: the model; its parameters that require a gradient are measured.
        loss_fn: called with the model's output and the targets; returns a scalar, a mean or a sum over the examples.
        inputs: a batch or an iterable of batches, as for ``estimate_trace``.
        targets: the second argument of ``loss_fn``; None where ``inputs`` gives it.
        kind: "hessian" or "ggn".
        method: one of the methods above. One that is named and not right for the model raises ValueError.
        n_samples: the number of samples for each batch, >= 1; with ``rtol`` the least number. The default is 100 without
            ``rtol``.
        rtol: in (0, 1): samples are drawn, 16 at least, until the norm of all standard errors is at most this share of the
            norm of the diagonal. Among several batches each must reach it, and so must their mean.
        max_samples: the number of samples, >= 1, at which ``rtol`` is given up, with a warning and ``converged`` False.
        seed: int in [0, 2^64). The same seed gives the same samples.
        max_memory: bytes that "exact" and "activation" may take for cotangents at a time.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        process_group: the ranks that measure together, as for ``estimate_trace``.
        output: a function that picks from the model's output what ``loss_fn`` gets, as for ``estimate_trace``.
        batch_size: the number of examples in a batch, as for ``estimate_trace``.
        progress: True for a progress bar, False for none; None for one on work of more than three seconds in a terminal.

    Returns:
        A dict of tensors by parameter name, each of the parameter's shape, in units of the loss over the parameters' units
            squared; its ``stderr`` has the standard errors, nan from one sample, and ``per_layer`` the sums over layers.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the loss cannot be measured; the named method is not right for the model.
        NotTwiceDifferentiableError: an operation in the graph of the loss has no second derivative.
        ImportError: ``progress`` is True, and tqdm is not installed.

    References:
        - Dangel, Kunstner, Hennig 2020, "BackPACK: packing more into backprop".
        - Bekas, Kokiopoulou, Saad 2007, "An estimator for the diagonal of a matrix".

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 3.0], [0.0, 2.0]]), torch.zeros(2, 1)
        >>> found = diagonal(model, torch.nn.MSELoss(), x, y)
        >>> found["weight"].tolist(), found.method
        ([[1.0, 13.0]], 'exact')
    """
    matrix = make_matrix(
        model,
        loss_fn,
        inputs,
        targets,
        kind=kind,
        max_memory=max_memory,
        backend=backend,
        process_group=process_group,
        output=output,
        batch_size=batch_size,
    )
    _validate.one_of("method", method, ("auto", *NAMES))
    most = _validate.integer("max_samples", max_samples, low=1, high=1 << 32)
    tolerance = None if rtol is None else _validate.real("rtol", rtol, above=0, below=1)
    first = _DEFAULT_SAMPLES if tolerance is None else 1
    if n_samples is not None:
        first = _validate.integer("n_samples", n_samples, low=1, high=1 << 32)
    if tolerance is not None and first > most:
        raise ValueError(
            f"max_samples must be at least n_samples={first} where rtol is given, got {most}"
        )
    checked_seed = _validate.seed(seed)
    check_progress(progress)
    budget = Budget(first, tolerance, most)
    with matrix.gathered(), bar(progress, "diagonal", "sample") as shown:
        return _measure(matrix, method, budget, checked_seed, shown)


def _measure(matrix: Matrix, method: str, budget: Budget, seed: int, shown: Bar) -> Diagonal:
    methods: dict[str, None] = {}
    reasons: dict[str, None] = {}
    layers = layers_of(matrix.names)
    shape = (matrix.size + len(layers) + 1, 2)

    def batch_sums() -> tuple[Tensor, float]:
        """Returns the weighted sums and the weights.

        Means stand beside squared errors, both of entries and then of layers; the last row has the number of samples, and
        that of the batches which ``max_samples`` stopped.
        """
        sums = torch.zeros(shape, dtype=torch.float64, device=matrix.device)
        weight = 0.0
        for index, (size, batch) in enumerate(matrix.batches(seed)):
            with in_batch(index):
                chosen, why = choose(method, batch, budget)
                if chosen == "exact":
                    mean = with_layers(exact_diagonal(batch), batch.problem.parameters)
                    square = torch.zeros_like(mean)
                else:
                    mean, square, count = sampled_diagonal(chosen, batch, budget, shown.update)
                    sums[-1, 0] += count
                    sums[-1, 1] += count >= budget.most
            methods[chosen], reasons[why] = None, None
            share = 1.0 if matrix.is_sum else float(size)
            sums[:-1, 0].add_(mean, alpha=share)
            sums[:-1, 1].add_(square, alpha=share**2)
            weight += share
        return sums, weight

    sums, weight = matrix.over_ranks(batch_sums, shape, torch.float64)
    by = 1.0 if matrix.is_sum else weight
    mean, square = sums[:-1, 0] / by, sums[:-1, 1] / by**2
    n_samples = round(float(sums[-1, 0]))
    value, error = norms(mean[: matrix.size], square[: matrix.size])
    is_trusted = budget.most > DEGREES
    converged = n_samples == 0 or budget.is_met(value, error, is_trusted=is_trusted)
    if budget.rtol is not None and not converged:
        _warn(value, error, budget, is_stopped=bool(sums[-1, 1]))
    of_layers = [mean[matrix.size :].tolist(), square[matrix.size :].sqrt().tolist()]
    return Diagonal(
        matrix.by_name(mean[: matrix.size]),
        stderr=matrix.by_name(square[: matrix.size].sqrt()),
        per_layer=dict(zip(layers, of_layers[0], strict=True)),
        per_layer_stderr=dict(zip(layers, of_layers[1], strict=True)),
        n_samples=n_samples,
        method=" and ".join(methods),
        kind=matrix.kind,
        seed=seed,
        why=" | ".join(reasons),
        converged=converged,
    )


def _warn(value: float, error: float, budget: Budget, *, is_stopped: bool) -> None:
    found = f"standard errors of norm {error:.3g} on a diagonal of norm {value:.3g}"
    if budget.most <= DEGREES:
        warn_user(
            f"diagonal stopped at max_samples={budget.most}, with {found}: rtol takes {1 + DEGREES} samples at least, "
            "fewer know too little about their own error",
            UserWarning,
        )
    elif is_stopped:
        warn_user(
            f"diagonal stopped at max_samples={budget.most}, with {found}: the values are honest but rougher than "
            f"rtol={budget.rtol:g}",
            UserWarning,
        )
    else:
        warn_user(
            f"diagonal found batches whose diagonals cancel, with {found}: each reached rtol, their mean did not; "
            "ask for n_samples or a smaller rtol",
            UserWarning,
        )

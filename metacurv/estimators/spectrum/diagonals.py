"""The diagonal of one batch's curvature matrix: exact from columns, or a sample at a time.

    columns:     sum over columns of s_i t_i, with s and t the gradients from u and w          (sum u w' = H_out)
    activation:  the same of one random pair (u, w) a sample                                   (E u w' = H_out)
    hutchinson:  v_i (H v)_i with a sign vector v                                              (E v v' = I)

Sources: Dangel, Kunstner, Hennig 2020, "BackPACK: packing more into backprop", section 2.3 (columns and random pairs); Bekas,
Kokiopoulou, Saad 2007, "An estimator for the diagonal of a matrix" (sign vectors).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.mlp.second_derivatives import bend_diagonals
from metacurv.estimators.mlp.space import ChainSpace
from metacurv.estimators.problem.numerics import wide
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.select.methods import METHODS
from metacurv.estimators.spectrum.batch_matrix import BatchMatrix
from metacurv.estimators.statistics.moments import RunningMoments
from metacurv.estimators.statistics.stopping import Budget

DiagonalMethod = Literal["auto", "exact", "activation", "hutchinson"]
NAMES = ("exact", "activation", "hutchinson")

# Maps a probe's number to a sample of every parameter's diagonal, flat, one after another.
Sample = Callable[[int], Tensor]


def choose(method: str, batch: MeasuredBatch, n_samples: int) -> tuple[str, str]:
    """Returns the name of the method for a batch, and the reason for it.

    Raises:
        ValueError: the named method is not right for this model, or none is.
    """
    budget = Budget(n_samples, None, n_samples)
    against = {name: METHODS[name].why_not(batch) for name in NAMES}
    if method != "auto":
        if (reason := against[method]) is not None:
            raise ValueError(
                f"method={method!r} is not right for this model and kind={batch.kind!r}: {reason}; "
                "use method='auto' for the cheapest that is"
            )
        return method, "asked for by name"
    costs = {n: METHODS[n].cost(batch, budget) for n, reason in against.items() if reason is None}
    if not costs:
        raise ValueError(f"kind={batch.kind!r} cannot be measured here: {against['hutchinson']}")
    chosen = min(costs, key=lambda name: costs[name].passes)
    reasons = [f"{chosen}: {costs[chosen].text}"]
    for name in NAMES[: NAMES.index(chosen)]:
        reason = against[name] or f"it would take {costs[name].text}"
        reasons.append(f"not {name}: {reason}")
    return chosen, "; ".join(reasons)


def exact_diagonal(batch: MeasuredBatch) -> Tensor:
    """Returns the diagonal from all columns, flat."""
    parameters = batch.problem.parameters

    def columns() -> Tensor:
        space = batch.general_space(for_columns=True)
        total = torch.zeros_like(_flat({}, parameters))
        for start in range(0, space.column_count, space.at_once):
            stop = min(start + space.at_once, space.column_count)
            total += _flat(space.column_diagonal(start, stop), parameters)
        chain = batch.space(for_columns=True)
        if batch.kind == "hessian" and isinstance(chain, ChainSpace) and chain.chain.has_smooth:
            total += _flat(bend_diagonals(chain, batch.forward.loss), parameters)
        return total

    return batch.quietly(columns)


def sampled_diagonal(
    method: str, batch: MeasuredBatch, n_samples: int, each: Callable[[], None]
) -> tuple[Tensor, Tensor]:
    """Returns mean and squared standard error over samples, flat; ``each`` is called after each sample."""
    moments = RunningMoments()

    def samples() -> None:
        draw = _activation(batch) if method == "activation" else _hutchinson(batch)
        for probe in range(moments.count, n_samples):
            moments.add(draw(probe).unsqueeze(0))
            each()

    batch.quietly(samples)
    if n_samples == 1:
        return moments.mean, torch.full_like(moments.mean, torch.nan)
    return moments.mean, moments.m2 / (n_samples - 1) / n_samples


def _activation(batch: MeasuredBatch) -> Sample:
    space, key = batch.general_space(for_columns=False), ops.as_int64(batch.seed)
    return lambda probe: _flat(space.draw_diagonal(key, probe), batch.problem.parameters)


def _hutchinson(batch: MeasuredBatch) -> Sample:
    parameters, matrix = batch.problem.parameters, BatchMatrix(batch)
    run, key = ops.implementation(batch.backend, batch.problem.device), ops.as_int64(batch.seed)
    vectors = [torch.empty_like(p.tensor) for p in parameters]
    numbers = [p.number for p in parameters]

    def draw(probe: int) -> Tensor:
        index = torch.full((), probe, dtype=torch.int64, device=batch.problem.device)
        run.rademacher_(vectors, key, index, numbers, [0] * len(numbers))
        products = matrix.times(vectors)
        return torch.cat(
            [(wide(h) * wide(v)).reshape(-1) for h, v in zip(products, vectors, strict=True)]
        )

    return draw


def _flat(parts: Mapping[int, Tensor], parameters: list[NumberedParameter]) -> Tensor:
    """Returns one tensor for each parameter, flat, with zeros where there is none."""
    pieces = [
        wide(parts[index]).reshape(-1)
        if index in parts
        else wide(torch.zeros_like(p.tensor, requires_grad=False)).reshape(-1)
        for index, p in enumerate(parameters)
    ]
    return torch.cat([piece.detach() for piece in pieces])

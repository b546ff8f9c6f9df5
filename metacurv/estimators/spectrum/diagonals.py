"""The diagonal of one batch's curvature matrix: exact from columns, or a sample at a time.

    columns:     sum over columns of s_i t_i, with s and t the gradients from u and w          (sum u w' = H_out)
    activation:  the same of one random pair (u, w) a sample                                   (E u w' = H_out)
    hutchinson:  v_i (H v)_i with a sign vector v                                              (E v v' = I)

Sources: Dangel, Kunstner, Hennig 2020, "BackPACK: packing more into backprop", section 2.3 (columns and random pairs); Bekas,
Kokiopoulou, Saad 2007, "An estimator for the diagonal of a matrix" (sign vectors).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.mlp.second_derivatives import bend_diagonals
from metacurv.estimators.mlp.space import ChainSpace
from metacurv.estimators.problem.numerics import wide
from metacurv.estimators.problem.parameters import NumberedParameter, layers_of
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.select.methods import METHODS
from metacurv.estimators.spectrum.batch_matrix import BatchMatrix
from metacurv.estimators.statistics.moments import DEGREES, RunningMoments
from metacurv.estimators.statistics.stopping import Budget

DiagonalMethod = Literal["auto", "exact", "activation", "hutchinson"]
NAMES = ("exact", "activation", "hutchinson")

# Maps a probe's number to a sample of every parameter's diagonal, flat, one after another.
Sample = Callable[[int], Tensor]


def choose(method: str, batch: MeasuredBatch, budget: Budget) -> tuple[str, str]:
    """Returns the name of the method for a batch, and the reason for it.

    With a tolerance the samples are counted as if noise were as large as the diagonal, which it seldom falls short of.

    Raises:
        ValueError: the named method is not right for this model, or none is.
    """
    if budget.rtol is not None:
        needed = math.ceil(min(budget.most, 1 / budget.rtol / budget.rtol))
        budget = replace(budget, first=max(budget.first, needed))
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
    method: str, batch: MeasuredBatch, budget: Budget, each: Callable[[], None]
) -> tuple[Tensor, Tensor, int]:
    """Draws until ``budget`` is met, and returns mean, squared standard error, both ``with_layers``, and the samples' number.

    ``each`` is called after each sample.
    """
    moments, parameters = RunningMoments(), batch.problem.parameters
    size = sum(p.tensor.numel() for p in parameters)

    def samples() -> int:
        draw = _activation(batch) if method == "activation" else _hutchinson(batch)
        wanted = max(moments.count, budget.begin(1))
        while True:
            while moments.count < wanted:
                moments.add(with_layers(draw(moments.count), parameters).unsqueeze(0))
                each()
            value, error = norms(moments.mean[:size], _squared_error(moments)[:size])
            wanted = budget.more(wanted, value, error, is_trusted=wanted > DEGREES)
            if wanted <= moments.count:
                return moments.count

    count = batch.quietly(samples)
    return moments.mean, _squared_error(moments), count


def _squared_error(moments: RunningMoments) -> Tensor:
    return moments.m2 / ((moments.count - 1) or math.nan) / moments.count


def norms(mean: Tensor, squared_error: Tensor) -> tuple[float, float]:
    """Returns the norm of the diagonal, without what its own noise adds, and the norm of its standard errors."""
    square, noise = float(mean.square().sum()), float(squared_error.sum())
    return math.sqrt(max(square - noise, 0.0)) if noise == noise else math.nan, math.sqrt(noise)


def with_layers(flat: Tensor, parameters: list[NumberedParameter]) -> Tensor:
    """Extends a diagonal [P] by the sum of each of ``layers_of``, in float64."""
    parts = torch.split(flat, [p.tensor.numel() for p in parameters])
    sum_of = {
        p.name: part.sum(dtype=torch.float64) for p, part in zip(parameters, parts, strict=True)
    }
    layers = layers_of(sum_of).values()
    sums = [torch.stack([sum_of[name] for name in names]).sum() for names in layers]
    return torch.cat([flat, torch.stack(sums)])


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

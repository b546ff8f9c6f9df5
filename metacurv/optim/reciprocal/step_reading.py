"""The trace of a loss during training, in activation space, from the training step's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv import ops
from metacurv.estimators.activation.examine import examine
from metacurv.estimators.activation.plan import NotInActivationSpace
from metacurv.estimators.activation.space import ActivationSpace
from metacurv.estimators.mlp.recognise import find_chain
from metacurv.estimators.mlp.second_derivatives import bend_columns
from metacurv.estimators.mlp.space import ChainSpace
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.problem.user_state import plain_arithmetic, without_hooks
from metacurv.estimators.select.methods import exact_parts, worth_columns
from metacurv.estimators.statistics.moments import TraceReading

MAX_MEMORY = 1 << 28


def read_step_trace(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    *,
    edge: GradientEdge | None,
    samples: int,
    estimator: Literal["exact", "activation", "auto"],
    seed: int,
    first_probe: int,
    n_samples: int,
    backend: str,
) -> TraceReading:
    """Measures the trace of the Hessian of a checked ``loss``, on the device, reusing its forward pass.

    Args:
        loss: one element, with its graph, which stays usable.
        parameters: all parameters to be measured.
        edge: where the gradient in the model's output arrives, if that is one tensor; a known loss function does without.
        samples: the number of examples in the batch.
        estimator: "exact", "activation", or "auto": exact where it takes few columns.
        seed: as for ``hessian_trace``, like the rest.
        first_probe: number of the first probe.
        n_samples: the number of probes, where it samples.
        backend: "auto", "native" or "reference".

    Raises:
        NotInActivationSpace: the result would be wrong there; the message says why.
    """
    with plain_arithmetic(loss.device), without_hooks(parameters):
        found = _chain_space(loss, parameters, estimator, n_samples, backend)
        # On a chain no backward pass runs, but for the derivatives of smooth activations.
        with nullcontext() if found is not None else torch.no_grad():
            space, is_exact = found or _activation_space(
                loss, parameters, edge, samples, estimator, n_samples, backend
            )
            parts = (
                exact_parts(space, loss, "hessian").unsqueeze(0)
                if is_exact
                else space.draw(ops.as_int64(seed), first_probe, n_samples)
            )
        rows = torch.cat([parts, parts.sum(1, keepdim=True)], dim=1)
        mean = rows[0] if len(rows) == 1 else rows.mean(0)
        m2 = torch.zeros_like(mean) if len(rows) == 1 else (rows - mean).square().sum(0)
    names = [p.name for p in parameters]
    return TraceReading(
        mean=mean,
        m2=m2,
        curved=names,
        names=names,
        n_samples=0 if is_exact else n_samples,
        seed=seed,
        method="exact" if is_exact else "activation",
    )


def _chain_space(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    estimator: str,
    n_samples: int,
    backend: str,
) -> tuple[ChainSpace, bool] | None:
    """Returns the loss as a chain, if it is one, and whether to take its columns."""
    chain = find_chain(loss, parameters)
    if chain is None:
        return None
    is_exact = _takes_columns(estimator, chain.columns + bend_columns(chain), n_samples)
    if chain.has_smooth and not is_exact:
        return None  # signs at smooth activations are drawn in the general form only
    run = ops.implementation(backend, loss.device)
    return ChainSpace(chain, parameters, run, MAX_MEMORY), is_exact


def _activation_space(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    edge: GradientEdge | None,
    samples: int,
    estimator: str,
    n_samples: int,
    backend: str,
) -> tuple[ActivationSpace, bool]:
    """Returns any other loss in activation space, and whether to take its columns."""
    walk, examined = examine(loss, parameters, edge, samples, "hessian")
    plan = examined.plan
    if plan.obstacle is not None:
        raise NotInActivationSpace(plan.obstacle)
    is_exact = not plan.smooth and _takes_columns(estimator, examined.columns, n_samples)
    if estimator == "exact" and not is_exact:
        raise NotInActivationSpace(
            "columns give the Hessian only where a network is linear in pieces or a plain stack of layers under softmax "
            "cross-entropy, and this one has smooth activations"
        )
    run = ops.implementation(backend, loss.device)
    apart = examined.apart if is_exact else 1
    space = ActivationSpace(loss, walk, examined, parameters, apart, "hessian", run, MAX_MEMORY)
    return space, is_exact


def _takes_columns(estimator: str, columns: int, n_samples: int) -> bool:
    return estimator == "exact" or (estimator == "auto" and worth_columns(columns, n_samples))

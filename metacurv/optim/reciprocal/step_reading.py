"""The trace of a loss during training, in activation space, from the training step's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TypedDict

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
from metacurv.estimators.problem.loss_checks import without_hooks
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.problem.user_state import plain_arithmetic
from metacurv.estimators.select.choice import worth_columns
from metacurv.estimators.select.exact import exact_parts
from metacurv.estimators.statistics.moments import TraceReading

_MAX_MEMORY = 1 << 28


class Probing(TypedDict):
    """The probes of a reading, as the arguments of ``hessian_trace`` say it."""

    seed: int
    first_probe: int
    n_samples: int
    backend: str


def read_step_trace(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    edge: GradientEdge | None,
    samples: int,
    estimator: str,
    probing: Probing,
) -> TraceReading:
    """Measures the trace of the Hessian of a checked ``loss``, on the device, reusing its forward pass.

    Args:
        loss: one element, with its graph, which stays usable.
        parameters: all parameters to be measured.
        edge: where the gradient in the model's output arrives, if that is one tensor; a known loss function does without.
        samples: the number of examples in the batch.
        estimator: "exact", "activation", or "auto": exact where it takes few columns.
        probing: the probes, where it samples.

    Raises:
        NotInActivationSpace: the result would be wrong there; the message says why.
    """
    with plain_arithmetic(loss.device), without_hooks(parameters):
        space, is_exact = _space(loss, parameters, edge, samples, estimator, probing)
        # On a chain no backward pass runs, but for the derivatives of smooth activations.
        with nullcontext() if isinstance(space, ChainSpace) else torch.no_grad():
            if is_exact:
                parts = exact_parts(space, loss, "hessian").unsqueeze(0)
            else:
                seed = ops.as_int64(probing["seed"])
                parts = space.draw(seed, probing["first_probe"], probing["n_samples"])
        rows = torch.cat([parts, parts.sum(1, keepdim=True)], dim=1)
        mean = rows[0] if len(rows) == 1 else rows.mean(0)
        m2 = torch.zeros_like(mean) if len(rows) == 1 else (rows - mean).square().sum(0)
    names = [p.name for p in parameters]
    return TraceReading(
        mean=mean,
        m2=m2,
        curved=names,
        names=names,
        n_samples=0 if is_exact else probing["n_samples"],
        seed=probing["seed"],
        method="exact" if is_exact else "activation",
    )


def _space(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    edge: GradientEdge | None,
    samples: int,
    estimator: str,
    probing: Probing,
) -> tuple[ChainSpace | ActivationSpace, bool]:
    """Returns the loss in activation space, as a chain where it is one, and whether to take its columns."""
    run = ops.implementation(probing["backend"], loss.device)

    def takes(columns: int) -> bool:
        few = estimator == "auto" and worth_columns(columns, probing["n_samples"])
        return few or estimator == "exact"

    chain = find_chain(loss, parameters)
    if chain is not None:
        is_exact = takes(chain.columns + bend_columns(chain))
        # Signs at smooth activations are drawn in the general form only.
        if is_exact or not chain.has_smooth:
            return ChainSpace(chain, parameters, run, _MAX_MEMORY), is_exact
    with torch.no_grad():
        walk, examined = examine(loss, parameters, edge, samples, "hessian")
        if examined.plan.obstacle is not None:
            raise NotInActivationSpace(examined.plan.obstacle)
        is_exact = not examined.plan.smooth and takes(examined.columns)
        if estimator == "exact" and not is_exact:
            raise NotInActivationSpace(
                "columns give the Hessian only where a network is linear in pieces or a plain stack of layers under softmax "
                "cross-entropy, and this one has smooth activations"
            )
        apart = examined.apart if is_exact else 1
        space = ActivationSpace(
            loss, walk, examined, parameters, apart, "hessian", run, _MAX_MEMORY
        )
        return space, is_exact

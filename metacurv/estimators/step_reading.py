"""The trace of a loss that is being trained on, in activation space, from the forward pass that made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv import ops
from metacurv.estimators.activation_plan import NotInActivationSpace
from metacurv.estimators.activation_space import ActivationSpace
from metacurv.estimators.choice import worth_columns
from metacurv.estimators.exact import exact_parts
from metacurv.estimators.examine import examine
from metacurv.estimators.loss_checks import without_hooks
from metacurv.estimators.moments import TraceReading
from metacurv.estimators.parameters import NumberedParameter

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
    """Trace of the Hessian of a checked ``loss``, on the device, reusing its forward pass.

    Args:
        loss: one element, with its graph, which stays usable.
        parameters: all that are asked for.
        edge: where the gradient in the model's output arrives, if that is one tensor; a known loss function does without.
        samples: in the batch.
        estimator: "exact", "activation", or "auto": exact where it takes few columns.
        seed: as for ``hessian_trace``, like the rest.
        first_probe: number of the first probe.
        n_samples: probes, where it samples.
        backend: "auto", "native" or "reference".

    Raises:
        NotInActivationSpace: it would be wrong there; the message says why.
    """
    with (
        torch.autocast(loss.device.type, enabled=False),
        torch.inference_mode(False),
        torch.no_grad(),
        without_hooks(parameters),
    ):
        walk, examined = examine(loss, parameters, edge, samples, "hessian")
        plan = examined.plan
        if plan.obstacle is not None:
            raise NotInActivationSpace(plan.obstacle)
        is_exact = not plan.smooth and (
            estimator == "exact" or (estimator == "auto" and worth_columns(examined, n_samples))
        )
        if estimator == "exact" and not is_exact:
            raise NotInActivationSpace(
                "columns give the Hessian only where a network is linear in pieces, and this one has smooth activations"
            )
        space = ActivationSpace(
            loss,
            walk,
            examined,
            parameters,
            examined.apart if is_exact else 1,
            "hessian",
            ops.implementation(backend, loss.device),
            MAX_MEMORY,
        )
        parts = (
            exact_parts(space).unsqueeze(0)
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

"""Measures the trace of the Hessian during training: from the loop's loss, or from gradients that carry a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metacurv import _validate, ops
from metacurv.estimators.activation.examine import examine
from metacurv.estimators.activation.plan import NotInActivationSpace
from metacurv.estimators.activation.space import ActivationSpace
from metacurv.estimators.mlp.recognise import find_chain
from metacurv.estimators.mlp.second_derivatives import bend_columns
from metacurv.estimators.mlp.space import ChainSpace
from metacurv.estimators.probes.double_backward import DoubleBackward
from metacurv.estimators.probes.hutchinson import read_trace, trace_of_loss
from metacurv.estimators.problem.errors import (
    NotTwiceDifferentiableError,
    explain_differentiation_errors,
)
from metacurv.estimators.problem.model_loss import check_loss
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.problem.user_state import StateKept, plain_arithmetic, without_hooks
from metacurv.estimators.select.methods import exact_parts, worth_columns
from metacurv.estimators.statistics.moments import TraceReading
from metacurv.optim.reciprocal.gradient_graph import check_gradient_graph
from metacurv.optim.reciprocal.step_capture import StepCapture
from metacurv.processes.fully_sharded import whole_parameters

Estimator = Literal["hutchinson", "activation", "exact", "auto"]
NumberedParameters = list[NumberedParameter]

_MAX_MEMORY = 1 << 28
_WHY = {
    "exact": "exact: it takes few columns of the loss's factor, a backward pass to the layers each",
    "activation": "activation: a backward pass to the layers a sample; exact would take many, or is not right beside smooth "
    "activations",
}
_FROM_GRADIENTS = (
    "hutchinson: gradients carry a graph, but the others need the loss: call update_curvature(loss)"
)


class Probing(TypedDict):
    """The probes of a reading, as the arguments of ``hessian_trace`` say it."""

    seed: int
    first_probe: int
    n_samples: int
    backend: str


class Readings:
    """Measures with one estimator.

    Args:
        model: the module that the loop calls, or None; every estimator but "hutchinson" needs it.
        stepped: the optimizer's parameters.
        estimator: the estimator's name.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``estimator`` is unknown, or ``model`` is missing or has none of the parameters.
    """

    def __init__(
        self, model: nn.Module | None, stepped: Sequence[Tensor], estimator: Estimator
    ) -> None:
        known = get_args(Estimator)
        if estimator not in known:
            raise ValueError(
                f"estimator must be one of {', '.join(known)}, got {_validate.describe(estimator)}"
            )
        if estimator != "hutchinson" and model is None:
            raise ValueError(
                f"model must be given with estimator={estimator!r}, which looks at its forward pass, got None"
            )
        self.estimator = estimator
        self._model = model
        self._capture: StepCapture | None = None
        self._with_buffers: list[nn.Module] = []
        if model is not None:
            # The wrapper may change the output.
            one_copy = model.module if isinstance(model, DistributedDataParallel) else model
            capture = StepCapture(one_copy, stepped)  # checks it
            self._capture = None if estimator == "hutchinson" else capture
            self._with_buffers = [module for module in model.modules() if module._buffers]

    def listen(self, on: bool) -> None:
        """Looks out for forward passes of the model where ``on`` is True, else no more."""
        if self._capture is not None:
            self._capture.listen(on)

    def of_loss(
        self, loss: Tensor, parameters: NumberedParameters, probing: Probing, *, finite: bool
    ) -> TraceReading:
        """Measures ``loss`` once it has been checked; it is to be ``finite`` where looking at it is allowed."""
        parts = {p.name: p.tensor for p in parameters}
        with whole_parameters(self._model, parts) as whole:
            check_loss(loss, finite=finite)  # all ranks gather, whatever their loss is
            device = parameters[0].tensor.device
            # A backward pass through a checkpoint runs batch norm again.
            with StateKept(self._with_buffers, device) if self._with_buffers else nullcontext():
                pairs = zip(parameters, whole, strict=True)
                return self._measured(loss, [replace(p, tensor=t) for p, t in pairs], probing)

    def of_gradients(
        self, parameters: NumberedParameters, before: Mapping[Tensor, Tensor], probing: Probing
    ) -> TraceReading:
        """Measures from the graph of the gradients; for ``before`` see ``check_gradient_graph``."""
        check_gradient_graph(parameters, before)
        gradients = [parameter.tensor.grad for parameter in parameters]
        reading = read_trace(DoubleBackward(gradients, parameters), **probing)
        return reading if self.estimator == "hutchinson" else replace(reading, why=_FROM_GRADIENTS)

    def _measured(
        self, loss: Tensor, parameters: NumberedParameters, probing: Probing
    ) -> TraceReading:
        if self._capture is None:
            return trace_of_loss(loss, parameters, **probing)
        try:
            reading = self._of_pass(self._capture, loss, parameters, probing)
        except NotInActivationSpace as reason:
            if self.estimator != "auto":
                raise ValueError(
                    f"loss cannot be measured with estimator={self.estimator!r}: {reason}. MetaCurvatureLR(..., "
                    "estimator='auto') takes what is right for each loss, and estimator='hutchinson' serves any"
                ) from reason
            why = f"hutchinson: serves any loss; neither exact nor activation: {reason}"
        except NotTwiceDifferentiableError:
            raise
        except RuntimeError as error:  # most likely the graph has been freed
            with explain_differentiation_errors("a backward pass from loss to the layers"):
                raise error
        else:
            why = _WHY[reading.method] if self.estimator == "auto" else "asked for by name"
            return replace(reading, why=why)
        return replace(trace_of_loss(loss, parameters, **probing), why=why)

    def _of_pass(
        self, capture: StepCapture, loss: Tensor, parameters: NumberedParameters, probing: Probing
    ) -> TraceReading:
        """Measures in activation space, on the device, reusing the forward pass that made the loss; its graph stays usable.

        Raises:
            NotInActivationSpace: the result would be wrong there; the message says why.
        """
        with plain_arithmetic(loss.device), without_hooks(parameters):
            space, is_exact = self._space(capture, loss, parameters, probing)
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
        self, capture: StepCapture, loss: Tensor, parameters: NumberedParameters, probing: Probing
    ) -> tuple[ChainSpace | ActivationSpace, bool]:
        """Returns the loss in activation space, as a chain where it is one, and whether to take its columns."""
        of_pass = capture.find(loss)
        run = ops.implementation(probing["backend"], loss.device)

        def takes(columns: int) -> bool:
            few = self.estimator == "auto" and worth_columns(columns, probing["n_samples"])
            return few or self.estimator == "exact"

        chain = find_chain(loss, parameters)
        if chain is not None:
            is_exact = takes(chain.columns + bend_columns(chain))
            # Signs at smooth activations are drawn in the general form only.
            if is_exact or not chain.has_smooth:
                return ChainSpace(chain, parameters, run, _MAX_MEMORY), is_exact
        with torch.no_grad():
            walk, examined = examine(loss, parameters, *of_pass, "hessian")
            plan = examined.plan
            if plan.obstacle is not None:
                raise NotInActivationSpace(plan.obstacle)
            is_exact = not plan.smooth and takes(examined.columns)
            if self.estimator == "exact" and not is_exact:
                raise NotInActivationSpace(
                    "columns give the Hessian only where a network is linear in pieces or a plain stack of layers under "
                    "softmax cross-entropy, and this one has smooth activations"
                )
            apart = examined.apart if is_exact else 1
            space = ActivationSpace(
                loss, walk, examined, parameters, apart, "hessian", run, _MAX_MEMORY
            )
            return space, is_exact

"""Measures the trace of the Hessian during training: from the loop's loss, or from gradients that carry a graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metacurv import _validate
from metacurv.estimators.activation.plan import NotInActivationSpace
from metacurv.estimators.probes.double_backward import DoubleBackward
from metacurv.estimators.probes.hutchinson import read_trace, trace_of_loss
from metacurv.estimators.problem.errors import (
    NotTwiceDifferentiableError,
    explain_differentiation_errors,
)
from metacurv.estimators.problem.loss_checks import check_loss
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.problem.user_state import StateKept
from metacurv.estimators.statistics.moments import TraceReading
from metacurv.optim.reciprocal.gradient_graph import check_gradient_graph
from metacurv.optim.reciprocal.step_capture import StepCapture
from metacurv.optim.reciprocal.step_reading import Probing, read_step_trace
from metacurv.processes.fully_sharded import whole_parameters

Estimator = Literal["hutchinson", "activation", "exact", "auto"]

_WHY = {
    "exact": "exact: it takes few columns of the loss's factor, a backward pass to the layers each",
    "activation": "activation: a backward pass to the layers a sample; exact would take many, or is not right beside smooth "
    "activations",
}
_FROM_GRADIENTS = (
    "hutchinson: gradients carry a graph, but the others need the loss: call update_curvature(loss)"
)


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
        self,
        loss: Tensor,
        parameters: Sequence[NumberedParameter],
        probing: Probing,
        *,
        finite: bool,
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

    def _measured(
        self, loss: Tensor, parameters: list[NumberedParameter], probing: Probing
    ) -> TraceReading:
        if self._capture is None:
            return trace_of_loss(loss, parameters, **probing)
        try:
            edge, samples = self._capture.find(loss)
            reading = read_step_trace(loss, parameters, edge, samples, self.estimator, probing)
            why = _WHY[reading.method] if self.estimator == "auto" else "asked for by name"
        except NotInActivationSpace as reason:
            if self.estimator != "auto":
                raise ValueError(
                    f"loss cannot be measured with estimator={self.estimator!r}: {reason}. MetaCurvatureLR(..., "
                    "estimator='auto') takes what is right for each loss, and estimator='hutchinson' serves any"
                ) from reason
            reading = trace_of_loss(loss, parameters, **probing)
            why = f"hutchinson: serves any loss; neither exact nor activation: {reason}"
        except NotTwiceDifferentiableError:
            raise
        except RuntimeError as error:  # most likely the graph has been freed
            with explain_differentiation_errors("a backward pass from loss to the layers"):
                raise error
        return replace(reading, why=why)

    def of_gradients(
        self,
        parameters: Sequence[NumberedParameter],
        before: Mapping[Tensor, Tensor],
        probing: Probing,
    ) -> TraceReading:
        """Measures from the graph of the gradients; for ``before`` see ``check_gradient_graph``."""
        check_gradient_graph(parameters, before)
        gradients = [parameter.tensor.grad for parameter in parameters]
        reading = read_trace(DoubleBackward(gradients, parameters), **probing)
        why = "" if self.estimator == "hutchinson" else _FROM_GRADIENTS
        return replace(reading, why=why)

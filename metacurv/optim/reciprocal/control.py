"""Runs the reciprocal rule: measures the trace of the Hessian of the loop's loss, and steps at the scaled rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any, Literal, TypedDict

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.activation.plan import NotInActivationSpace
from metacurv.estimators.probes.double_backward import DoubleBackward
from metacurv.estimators.probes.hutchinson import read_trace, trace_of_loss
from metacurv.estimators.problem.model_loss import check_loss
from metacurv.estimators.problem.parameters import NumberedParameter, number_parameters
from metacurv.estimators.problem.trace_estimate import TraceEstimate
from metacurv.estimators.problem.user_state import StateKept
from metacurv.estimators.statistics.moments import TraceReading
from metacurv.ops._reference.rates import MIN_SCALE
from metacurv.optim.base_step import Rate, stays_on_device, step_base_at
from metacurv.optim.group_parameters import named_parameters
from metacurv.optim.reciprocal.gradient_graph import check_gradient_graph
from metacurv.optim.reciprocal.record import UpdateRecord
from metacurv.optim.reciprocal.rule import ReciprocalRule
from metacurv.optim.reciprocal.smoothing import BiasCorrectedEma
from metacurv.optim.reciprocal.step_capture import (
    ACTIVATION_ESTIMATORS,
    ActivationEstimator,
    StepCapture,
)
from metacurv.processes.fully_sharded import whole_parameters
from metacurv.processes.ranks import Ranks, one_copy

Estimator = Literal["hutchinson"] | ActivationEstimator

_STATE_VERSION = 1
_FROM_GRADIENTS = (
    "hutchinson: gradients carry a graph, but the others need the loss: call update_curvature(loss)"
)


class _Probing(TypedDict):
    seed: int
    first_probe: int
    n_samples: int
    backend: str


class TraceControl:
    """Measures and steps for ``ReciprocalLR``, whose docstring describes the arguments."""

    def __init__(
        self,
        base: Optimizer,
        *,
        alpha: float,
        update_freq: int,
        n_hutchinson_samples: int,
        seed: int,
        smoothing: float,
        on_update: Callable[[UpdateRecord], None] | None,
        backend: str,
        model: nn.Module | None,
        estimator: Estimator,
        process_group: Any,
    ) -> None:
        self._base, self._model = base, model
        self._capture: StepCapture | None = None
        self.update_freq = update_freq
        self.n_hutchinson_samples = n_hutchinson_samples
        self.seed = _validate.seed(seed)
        self._backend = _validate.backend(backend)
        self.rule = ReciprocalRule(alpha, self._backend)
        self.on_update = on_update
        self._estimator = _checked_estimator(estimator, model)
        self._ema = BiasCorrectedEma(smoothing)
        self._numbered: tuple[list[tuple[int, bool]], list[NumberedParameter]] | None = None
        if alpha:  # something will be measured
            number_parameters(named_parameters(base), may_be_frozen=True)  # checks them
        self._with_buffers: list[nn.Module] = []
        if model is not None:
            stepped = [p for group in base.param_groups for p in group["params"]]
            capture = StepCapture(one_copy(model), stepped)  # checks it
            self._with_buffers = [module for module in model.modules() if module._buffers]
            self._capture = None if estimator == "hutchinson" else capture
        self._ranks = Ranks(model, process_group)
        self._reset()

    def _reset(self) -> None:
        """Goes back to before the first reading, where the scale is 1 and the base steps alone."""
        self._steps = 0
        self._probes = 0
        self._readings = 0
        self._measured_step = -1  # the last step count at which a reading was taken
        self._warned_no_reading = False
        self._last: TraceReading | None = None
        self._ema = BiasCorrectedEma(self._ema.beta)
        self._skipped = torch.zeros((), dtype=torch.int64, device="cpu")
        self._scale = torch.ones((), dtype=torch.float64, device="cpu")
        self._before: dict[Tensor, Tensor] = {}
        self._set_scale(self._scale)
        self._listen_if_due()

    @property
    def update_freq(self) -> int:
        """The number of optimizer steps from one reading to the next, >= 1."""
        return self._update_freq

    @update_freq.setter
    def update_freq(self, value: int) -> None:
        self._update_freq = _validate.integer("update_freq", value, low=1)
        self._listen_if_due()

    @property
    def n_hutchinson_samples(self) -> int:
        """The number of probes in a reading, >= 1."""
        return self._n_samples

    @n_hutchinson_samples.setter
    def n_hutchinson_samples(self, value: int) -> None:
        self._n_samples = _validate.integer("n_hutchinson_samples", value, low=1, high=1 << 32)

    @property
    def estimator(self) -> Estimator:
        """The name of the estimator that measures the loss given to ``update_curvature``."""
        return self._estimator

    @property
    def last_estimate(self) -> TraceEstimate | None:
        """The latest reading, or None before the first (and after loading a checkpoint)."""
        return None if self._last is None else self._last.estimate()

    @property
    def effective_lrs(self) -> list[float]:
        """The learning rate that the next ``step`` applies to each parameter group: lr times scale."""
        scale = self._host_scale()
        return [float(group["lr"]) * scale for group in self._base.param_groups]

    @property
    def skipped_readings(self) -> int:
        """The number of readings that were not finite and so changed nothing."""
        return int(self._skipped)

    # Measuring.

    def update_curvature(self, loss: Tensor) -> bool:
        """Does what ``ReciprocalLR.update_curvature`` does."""
        if not self._is_due():
            return False
        self.forget_gradients()
        # Of several ranks all skip a reading whose loss is not finite on one of them.
        finite = not stays_on_device(self._base) and self._ranks.count == 1

        def read() -> TraceReading:
            parameters = self._parameters()
            parts = {p.name: p.tensor for p in parameters}
            with whole_parameters(self._model, parts) as whole:
                check_loss(loss, finite=finite)  # all ranks gather, whatever their loss is
                pairs = zip(parameters, whole, strict=True)
                return self._read(loss, [replace(p, tensor=tensor) for p, tensor in pairs])

        self._commit(self._over_ranks(read))
        return True

    def _parameters(self) -> list[NumberedParameter]:
        """Returns the parameters of all groups, numbered.

        They are numbered anew only where a parameter was added, removed, frozen or thawed.
        """
        key = [
            (id(p), p.requires_grad) for group in self._base.param_groups for p in group["params"]
        ]
        if self._numbered is None or self._numbered[0] != key:
            self._numbered = (
                key,
                number_parameters(named_parameters(self._base), may_be_frozen=True),
            )
        if not self._numbered[1]:
            raise ValueError(
                f"optimizer must hold a parameter that requires a gradient, got {len(key)} frozen ones"
            )
        return self._numbered[1]

    def _is_due(self) -> bool:
        return self._steps % self.update_freq == 0 and self._measured_step != self._steps

    def _listen_if_due(self) -> None:
        """Switches the model's hook on where the next step is to be measured, else off; called wherever that may change."""
        if self._capture is not None:
            self._capture.listen(self._is_due())

    def _read(self, loss: Tensor, parameters: list[NumberedParameter]) -> TraceReading:
        # A backward pass through a checkpoint runs batch norm again.
        device = parameters[0].tensor.device
        with StateKept(self._with_buffers, device) if self._with_buffers else nullcontext():
            return self._read_now(loss, parameters)

    def _read_now(self, loss: Tensor, parameters: list[NumberedParameter]) -> TraceReading:
        if self._capture is None or self._estimator == "hutchinson":
            return trace_of_loss(loss, parameters, **self._probing())
        try:
            return self._capture.read(loss, parameters, self._estimator, **self._probing())
        except NotInActivationSpace as reason:
            if self._estimator != "auto":
                raise ValueError(
                    f"loss cannot be measured with estimator={self._estimator!r}: {reason}. MetaCurvatureLR(..., "
                    "estimator='auto') takes what is right for each loss, and estimator='hutchinson' serves any"
                ) from reason
            why = f"hutchinson: serves any loss; neither exact nor activation: {reason}"
        return replace(trace_of_loss(loss, parameters, **self._probing()), why=why)

    def _probing(self) -> _Probing:
        """Returns the probes of the next reading; each rank has its own, or their noise would not average out."""
        return {
            "seed": self.seed,
            "first_probe": (self._probes + self._ranks.here * self.n_hutchinson_samples)
            % (1 << 32),
            "n_samples": self.n_hutchinson_samples,
            "backend": self._backend,
        }

    def _commit(self, reading: TraceReading) -> None:
        """Lets the rule turn a reading into the scale that the next step uses."""
        self._last = reading
        self._readings += 1
        self._measured_step = self._steps
        self._listen_if_due()
        drawn = self.n_hutchinson_samples * self._ranks.count
        self._probes = (self._probes + drawn) % (1 << 32)
        smoothed = self._ema.update(reading.trace)
        scale = self._scale.to(reading.trace.device, copy=True)
        self.rule.update_(scale, smoothed)
        if scale.is_cpu and not stays_on_device(self._base):
            self._skipped = self._skipped + int(not math.isfinite(reading.trace.item()))
        else:  # without waiting for the device
            self._skipped = self._skipped.to(scale.device) + ~torch.isfinite(reading.trace)
        self._set_scale(scale)
        if self.on_update is not None:
            self.on_update(self._record(reading.estimate(), float(smoothed)))

    def _over_ranks(self, read: Callable[[], TraceReading]) -> TraceReading:
        """Returns a reading with the mean of all ranks' traces and its error; parts by parameter stay this rank's."""
        if self._ranks.count == 1:
            return read()
        here: list[TraceReading] = []

        def numbers() -> Tensor:
            here.append(read())
            return torch.stack([here[0].mean[-1], here[0].m2[-1]])

        device = next(p.device for group in self._base.param_groups for p in group["params"])
        like = torch.empty(2, dtype=torch.float64, device=device)
        self._ranks.same = self._same_on_all_ranks()
        mean, m2 = self._ranks.mean(numbers, like).unbind()
        (reading,) = here
        return replace(
            reading,
            mean=torch.cat([reading.mean[:-1], mean[None]]),
            m2=torch.cat([reading.m2[:-1], m2[None] / self._ranks.count]),
        )

    def _same_on_all_ranks(self) -> dict[str, float]:
        """Returns what all ranks must hold, by name: else they would read at different steps, or train at different rates."""
        return {
            "alpha": self.rule.alpha,
            "smoothing": self._ema.beta,
            "update_freq": float(self.update_freq),
            "n_hutchinson_samples": float(self.n_hutchinson_samples),
            "the number of steps": float(self._steps),
            **{
                f"the learning rate of group {g}": rate for g, rate in enumerate(self.effective_lrs)
            },
        }

    def _record(self, estimate: TraceEstimate, smoothed: float) -> UpdateRecord:
        return UpdateRecord(
            step=self._steps,
            trace=estimate.value,
            stderr=estimate.stderr,
            smoothed_trace=smoothed,
            scale=self._host_scale(),
            effective_lrs=self.effective_lrs,
            accepted=math.isfinite(estimate.value),
        )

    def _set_scale(self, scale: Tensor) -> None:
        on_device = stays_on_device(self._base)
        if on_device and self._scale.device == scale.device:
            self._scale.copy_(scale)  # steps in a captured graph read this memory
        else:
            self._scale = scale
        self._cached_scale: float | None = None
        for group in self._base.param_groups:
            group["lr_scale"] = self._scale if on_device else self._host_scale()

    def _host_scale(self) -> float:
        """The scale as a float, read from the device at most once a reading."""
        if self._cached_scale is None:
            self._cached_scale = float(self._scale)
        return self._cached_scale

    # Stepping.

    def step(self) -> None:
        """Takes one step of the base at its learning rates times the scale."""
        self._use_and_free_gradient_graphs()
        if self._readings == 0:
            if self.rule.alpha:
                self._warn_no_reading()
            self._base.step()
        else:
            step_base_at(self._base, [self._scaled(group) for group in self._base.param_groups])
        self._steps += 1
        self._listen_if_due()
        if self._is_due():
            self._keep_gradients()

    def _keep_gradients(self) -> None:
        """Remembers the gradients before the next backward pass, which adds to them where they are not set to None."""
        parameters = (p for group in self._base.param_groups for p in group["params"])
        self._before = {p: p.grad for p in parameters if p.grad is not None}

    def forget_gradients(self) -> None:
        """Lets go of the gradients that were kept."""
        self._before.clear()

    def _scaled(self, group: dict[str, Any]) -> Rate:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            return lr.detach() * (
                self._scale if lr.device == self._scale.device else self._host_scale()
            )
        return self._scale * lr if group.get("capturable") else float(lr * self._host_scale())

    def _use_and_free_gradient_graphs(self) -> None:
        """Serves ``backward(create_graph=True)``: on steps to be measured it reads the curvature from the gradients' graph.

        On all steps it then cuts the cycle parameter -> .grad -> graph -> parameter, which would keep each graph alive.
        """
        carriers = [
            parameter
            for group in self._base.param_groups
            for parameter in group["params"]
            if (gradient := parameter.grad) is not None and gradient.requires_grad
        ]
        if not carriers:
            return
        try:
            if self._is_due():
                self._commit(self._over_ranks(self._read_gradients))
        finally:
            self.forget_gradients()
            for parameter in carriers:
                _cut_graph(parameter)

    def _read_gradients(self) -> TraceReading:
        parameters = self._parameters()
        check_gradient_graph(parameters, self._before)
        gradients = [parameter.tensor.grad for parameter in parameters]
        reading = read_trace(DoubleBackward(gradients, parameters), **self._probing())
        if self._estimator != "hutchinson":
            reading = replace(reading, why=_FROM_GRADIENTS)
        return reading

    def _warn_no_reading(self) -> None:
        if not self._warned_no_reading:
            self._warned_no_reading = True
            warn_user(
                "MetaCurvatureLR steps without a curvature reading, so its learning rate is the base optimizer's: call "
                "opt.update_curvature(loss) between the forward and the backward pass, or pass probe=, model= and loss_fn= to "
                "MetaCurvatureLR for the rule that finds a rate by itself",
                UserWarning,
            )

    # Resuming.

    def group_added(self) -> None:
        """Takes in the parameter group that was just added to the base; its parameters get the next numbers."""
        self._set_scale(self._scale)

    def own_state(self) -> dict[str, Any]:
        """Returns numbers that resume bit for bit, for a state dict."""
        return {
            "version": _STATE_VERSION,
            "seed": self.seed,
            "steps": self._steps,
            "probes": self._probes,
            "readings": self._readings,
            "skipped": self.skipped_readings,
            "measured_step": self._measured_step,
            "scale": self._host_scale(),
            "ema": self._ema.state(),
        }

    def checked_own_state(self, state: Any, missing: Sequence[str]) -> Callable[[], None]:
        """Checks ``state`` (None: a checkpoint of the bare base) and returns a function that loads it; it has no tensors."""
        if state is None:
            return self._reset
        name = "state_dict['param_groups'][0]['metacurv']"
        version = state.get("version") if isinstance(state, dict) else None
        if (
            version != _STATE_VERSION or "rule" in state
        ):  # only the directional rule's names its rule
            raise ValueError(
                f"{name} must be a dict of version {_STATE_VERSION} of rule='reciprocal', got {_validate.describe(state)}"
            )
        missing = sorted(self.own_state().keys() - state.keys())
        if missing:
            raise ValueError(f"{name} must have all its entries, lacks {missing}")
        counters = {
            key: _validate.integer(f"{name}[{key!r}]", state[key], low=low, high=high)
            for key, low, high in (
                ("seed", 0, 1 << 64),
                ("steps", 0, None),
                ("probes", 0, 1 << 32),
                ("readings", 0, None),
                ("skipped", 0, None),
                ("measured_step", -1, None),
            )
        }
        scale = _validate.real(f"{name}['scale']", state["scale"], low=MIN_SCALE, high=1)
        ema = BiasCorrectedEma(self._ema.beta)
        ema.load(state["ema"], f"{name}['ema']")

        def load() -> None:
            self._reset()
            self.seed = counters["seed"]
            self._steps = counters["steps"]
            self._probes = counters["probes"]
            self._readings = counters["readings"]
            self._measured_step = counters["measured_step"]
            self._skipped.fill_(counters["skipped"])
            self._ema = ema
            self._set_scale(torch.tensor(scale, dtype=torch.float64, device="cpu"))
            self._listen_if_due()

        return load

    def describe(self) -> str:
        """The rule and its settings, for ``repr``."""
        return (
            f"rule={self.rule.name!r}, alpha={self.rule.alpha:g}, update_freq={self.update_freq}, "
            f"n_hutchinson_samples={self.n_hutchinson_samples}, smoothing={self._ema.beta:g}"
        )


def _checked_estimator(estimator: Any, model: object) -> Estimator:
    known = ("hutchinson", *ACTIVATION_ESTIMATORS)
    if estimator not in known:
        raise ValueError(
            f"estimator must be one of {', '.join(known)}, got {_validate.describe(estimator)}"
        )
    if estimator != "hutchinson" and model is None:
        raise ValueError(
            f"model must be given with estimator={estimator!r}, which looks at its forward pass, got None"
        )
    checked: Estimator = estimator
    return checked


def _cut_graph(parameter: Tensor) -> None:
    """Frees the graph that ``.grad`` carries: in place, or by another tensor on the same memory where it is a view."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient._is_view():
        parameter.grad = gradient.detach()
    else:
        gradient.detach_()

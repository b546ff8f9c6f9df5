"""Runs the reciprocal rule: says when to measure, and steps at the rates that the rule makes of the readings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.parameters import NumberedParameter, number_parameters
from metacurv.estimators.statistics.moments import TraceReading
from metacurv.ops._reference.rates import MIN_SCALE
from metacurv.optim.base_step import Rate, stays_on_device, step_base_at
from metacurv.optim.group_parameters import all_parameters, named_parameters
from metacurv.optim.reciprocal.readings import Probing, Readings
from metacurv.optim.reciprocal.record import UpdateRecord
from metacurv.optim.reciprocal.rule import BiasCorrectedEma, ReciprocalRule
from metacurv.processes.ranks import Ranks

_STATE_VERSION = 1
_COUNTERS = {  # of a checkpoint, with their bounds
    "seed": (0, 1 << 64),
    "steps": (0, None),
    "probes": (0, 1 << 32),
    "readings": (0, None),
    "skipped": (0, None),
    "measured_step": (-1, None),
}


class TraceControl:
    """Measures and steps for ``ReciprocalLR``, which checks and describes the numbers."""

    def __init__(
        self,
        base: Optimizer,
        rule: ReciprocalRule,
        readings: Readings,
        ranks: Ranks,
        *,
        update_freq: int,
        n_hutchinson_samples: int,
        smoothing: float,
        seed: int,
        on_update: Callable[[UpdateRecord], None] | None,
    ) -> None:
        self._base, self.rule, self.readings, self._ranks = base, rule, readings, ranks
        self.update_freq = update_freq
        self.n_hutchinson_samples = n_hutchinson_samples
        self.seed = seed
        self.on_update = on_update
        self._ema = BiasCorrectedEma(smoothing)
        self._numbered: dict[tuple[tuple[int, bool], ...], list[NumberedParameter]] = {}
        if rule.alpha:  # something will be measured
            number_parameters(named_parameters(base), may_be_frozen=True)  # checks them
        self._reset()

    def _reset(self) -> None:
        """Goes back to before the first reading, where the scale is 1 and the base steps alone."""
        self._steps = self._probes = self._readings = 0
        self._measured_step = -1  # the last step count at which a reading was taken
        self._warned_no_reading = False
        self.last: TraceReading | None = None
        self._ema = BiasCorrectedEma(self._ema.beta)
        self._skipped = torch.zeros((), dtype=torch.int64, device="cpu")
        self._scale = torch.ones((), dtype=torch.float64, device="cpu")
        self._before: dict[Tensor, Tensor] = {}
        self._set_scale(self._scale)
        self.listen_if_due()

    @property
    def effective_lrs(self) -> list[float]:
        """The learning rate that the next ``step`` applies to each parameter group: lr times scale."""
        scale = self._host_scale()
        return [float(group["lr"]) * scale for group in self._base.param_groups]

    @property
    def skipped_readings(self) -> int:
        """The number of readings that were not finite and so changed nothing."""
        return int(self._skipped)

    def _is_due(self) -> bool:
        return self._steps % self.update_freq == 0 and self._measured_step != self._steps

    def listen_if_due(self) -> None:
        """Switches the model's hook on where the next step is to be measured, else off; called wherever that may change."""
        self.readings.listen(self._is_due())

    # Measuring.

    def update_curvature(self, loss: Tensor) -> bool:
        """Does what ``ReciprocalLR.update_curvature`` does."""
        if not self._is_due():
            return False
        self.forget_gradients()
        # Of several ranks all skip a reading whose loss is not finite on one of them.
        finite = not stays_on_device(self._base) and self._ranks.count == 1
        self._measure(
            lambda: self.readings.of_loss(loss, self._parameters(), self._probing(), finite=finite)
        )
        return True

    def _parameters(self) -> list[NumberedParameter]:
        """Returns the parameters of all groups, numbered.

        They are numbered anew only where a parameter was added, removed, frozen or thawed.
        """
        key = tuple((id(p), p.requires_grad) for p in all_parameters(self._base))
        if key not in self._numbered:
            found = number_parameters(named_parameters(self._base), may_be_frozen=True)
            self._numbered = {key: found}
        if not self._numbered[key]:
            raise ValueError(
                f"optimizer must hold a parameter that requires a gradient, got {len(key)} frozen ones"
            )
        return self._numbered[key]

    def _probing(self) -> Probing:
        """Returns the probes of the next reading; each rank has its own, or their noise would not average out."""
        first = self._probes + self._ranks.here * self.n_hutchinson_samples
        return {
            "seed": self.seed,
            "first_probe": first % (1 << 32),
            "n_samples": self.n_hutchinson_samples,
            "backend": self.rule.backend,
        }

    def _measure(self, read: Callable[[], TraceReading]) -> None:
        """Takes a reading, and lets the rule turn it into the scale that the next step uses."""
        reading = read() if self._ranks.count == 1 else self._over_ranks(read)
        self.last = reading
        self._readings += 1
        self._measured_step = self._steps
        self.listen_if_due()
        drawn = self.n_hutchinson_samples * self._ranks.count
        self._probes = (self._probes + drawn) % (1 << 32)
        smoothed = self._ema.update(reading.trace)
        scale = self._scale.to(reading.trace.device, copy=True)
        self.rule.update_(scale, smoothed)
        self._skipped = self._skipped.to(scale.device) + ~torch.isfinite(reading.trace)
        self._set_scale(scale)
        if self.on_update is not None:
            estimate = reading.estimate()
            record = UpdateRecord(
                step=self._steps,
                trace=estimate.value,
                stderr=estimate.stderr,
                smoothed_trace=float(smoothed),
                scale=self._host_scale(),
                effective_lrs=self.effective_lrs,
                accepted=math.isfinite(estimate.value),
            )
            self.on_update(record)

    def _over_ranks(self, read: Callable[[], TraceReading]) -> TraceReading:
        """Returns a reading with the mean of all ranks' traces and its error; parts by parameter stay this rank's."""
        here: list[TraceReading] = []

        def numbers() -> Tensor:
            here.append(read())
            return torch.stack([here[0].mean[-1], here[0].m2[-1]])

        rates = enumerate(self.effective_lrs)
        # Else ranks would read at different steps, or train at different rates.
        self._ranks.same = {
            "alpha": self.rule.alpha,
            "smoothing": self._ema.beta,
            "update_freq": float(self.update_freq),
            "n_hutchinson_samples": float(self.n_hutchinson_samples),
            "the number of steps": float(self._steps),
            **{f"the learning rate of group {g}": rate for g, rate in rates},
        }
        device = all_parameters(self._base)[0].device
        like = torch.empty(2, dtype=torch.float64, device=device)
        mean, m2 = self._ranks.mean(numbers, like).unbind()
        (reading,) = here
        return replace(
            reading,
            mean=torch.cat([reading.mean[:-1], mean[None]]),
            m2=torch.cat([reading.m2[:-1], m2[None] / self._ranks.count]),
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
        if self._readings:
            step_base_at(self._base, [self._scaled(group) for group in self._base.param_groups])
        else:
            if self.rule.alpha and not self._warned_no_reading:
                self._warned_no_reading = True
                warn_user(
                    "MetaCurvatureLR steps without a curvature reading, so its learning rate is the base optimizer's: call "
                    "opt.update_curvature(loss) between the forward and the backward pass, or pass probe=, model= and loss_fn= "
                    "to MetaCurvatureLR for the rule that finds a rate by itself",
                    UserWarning,
                )
            self._base.step()
        self._steps += 1
        self.listen_if_due()
        if self._is_due():
            # The next backward pass adds to gradients that are not set to None.
            parameters = all_parameters(self._base)
            self._before = {p: p.grad for p in parameters if p.grad is not None}

    def forget_gradients(self) -> None:
        """Lets go of the gradients that were kept."""
        self._before.clear()

    def _scaled(self, group: dict[str, Any]) -> Rate:
        lr = group["lr"]
        if isinstance(lr, Tensor):
            is_near = lr.device == self._scale.device
            return lr.detach() * (self._scale if is_near else self._host_scale())
        return self._scale * lr if group.get("capturable") else float(lr * self._host_scale())

    def _use_and_free_gradient_graphs(self) -> None:
        """Serves ``backward(create_graph=True)``: on steps to be measured it reads the curvature from the gradients' graph.

        On all steps it then cuts the cycle parameter -> .grad -> graph -> parameter, which would keep each graph alive.
        """
        carriers = [
            (parameter, gradient)
            for parameter in all_parameters(self._base)
            if (gradient := parameter.grad) is not None and gradient.requires_grad
        ]
        if not carriers:
            return
        try:
            if self._is_due():
                self._measure(
                    lambda: self.readings.of_gradients(
                        self._parameters(), self._before, self._probing()
                    )
                )
        finally:
            self.forget_gradients()
            for parameter, gradient in carriers:
                if (
                    gradient._is_view()
                ):  # the graph of a view is freed by another tensor on its memory
                    parameter.grad = gradient.detach()
                else:
                    gradient.detach_()

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
        # Only the directional rule's state names its rule.
        if version != _STATE_VERSION or "rule" in state:
            raise ValueError(
                f"{name} must be a dict of version {_STATE_VERSION} of rule='reciprocal', got {_validate.describe(state)}"
            )
        missing = sorted(self.own_state().keys() - state.keys())
        if missing:
            raise ValueError(f"{name} must have all its entries, lacks {missing}")
        counters = {
            key: _validate.integer(f"{name}[{key!r}]", state[key], low=low, high=high)
            for key, (low, high) in _COUNTERS.items()
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
            self.listen_if_due()

        return load

    def describe(self) -> str:
        """Describes the rule and its settings, for ``repr``."""
        return (
            f"rule={self.rule.name!r}, alpha={self.rule.alpha:g}, update_freq={self.update_freq}, "
            f"n_hutchinson_samples={self.n_hutchinson_samples}, smoothing={self._ema.beta:g}"
        )

"""Runs the directional rule: measures slope and curvature along the base optimizer's step, and steps at the rule's rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Optimizer, RAdam, Rprop

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.base_step import Rate, stays_on_device, step_base_at
from metacurv.directional.first_step import FirstStep
from metacurv.directional.group_rates import GroupRates
from metacurv.directional.iterate_average import IterateAverage
from metacurv.directional.probe_batches import ProbeBatches
from metacurv.directional.probe_model import ProbeBatch, ProbeModel
from metacurv.directional.read_line import read_line
from metacurv.directional.record import DirectionalRecord, Records
from metacurv.directional.step_line import StepLine
from metacurv.directional.stepped import keep, moving
from metacurv.directional.timing import MeasuringTimes
from metacurv.estimators.line_reading import LineReading
from metacurv.estimators.parameters import number_parameters
from metacurv.group_parameters import named_parameters
from metacurv.rules.directional import DirectionalRule, Plan
from metacurv.rules.directional_state import DirectionalState

_STATE_VERSION = 1
_RADAM_STEPS = 5  # are not normalised (Liu et al. 2020: rho_t <= 5, for beta2 up to 0.9999)


class DirectionalControl:
    """Measures, steps and averages for ``DirectionalLR``, whose docstring describes the arguments."""

    def __init__(
        self,
        base: Optimizer,
        rule: DirectionalRule,
        *,
        model: nn.Module | None,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        probe: Any,
        horizon: int | None,
        average: bool | None,
        seed: int,
        on_update: Callable[[DirectionalRecord], None] | None,
    ) -> None:
        if isinstance(base, (Rprop, ASGD)):
            raise TypeError(
                f"optimizer must take lr for the length of its step with rule='directional', got {type(base).__name__}, which "
                "makes step lengths of its own from the first lr"
            )
        if any(group.get("maximize") for group in base.param_groups):
            raise ValueError(
                "optimizer must minimise with rule='directional', got maximize=True; negate the loss instead"
            )
        number_parameters(named_parameters(base))  # checks them
        if not (average is None or isinstance(average, bool)):
            raise TypeError(f"average must be True or False, got {_validate.describe(average)}")
        self._base = base
        self.rule = rule
        self.seed = _validate.seed(seed)
        self.on_update = on_update
        self._probes = ProbeBatches(probe, self.seed)
        self._model = ProbeModel(model, loss_fn, base)
        self._horizon = None if horizon is None else _validate.integer("horizon", horizon, low=1)
        self._rates = GroupRates(base, rule.per_group)
        self._asked_average = average
        self._shows_average = False
        self._reset(self._averages_by_argument)

    @property
    def _averages_by_argument(self) -> bool:
        return self._horizon is not None if self._asked_average is None else self._asked_average

    def _planned(self, averages: bool) -> Plan:
        return self.rule.plan(
            horizon=self._horizon,
            average=averages,
            plain_momentum=_has_plain_momentum(self._base),
        )

    def _reset(self, averages: bool) -> None:
        """Goes back to before the first step, where there is no rate."""
        self._averages = averages
        self._plan = self._planned(averages)
        self._steps = 0
        self._started = False
        self._skipped = 0
        self._state = DirectionalState(self._plan, len(self._rates.scales), self._device)
        self._times = _times(self._plan)
        self._probes.go_to(0, seed=self.seed)
        self._average = IterateAverage(self._all_parameters()) if averages else None
        self._went_on_from_average = False
        self._records = Records()
        self._rate_changed()
        for group in self._base.param_groups:
            group["lr_scale"] = math.nan  # until a step finds a rate

    # Results for the user.

    @property
    def effective_lrs(self) -> list[float]:
        """The learning rate of every group; nan before the first step, which finds the rate."""
        if not self._started:
            return [math.nan] * len(self._base.param_groups)
        return [float(rate) for rate in self._group_rates()]

    @property
    def skipped_readings(self) -> int:
        """The number of readings with a number that was not finite."""
        return sum(not record.accepted for record in self.history) + self._skipped

    @property
    def history(self) -> list[DirectionalRecord]:
        """All readings."""
        return self._records.all()

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Does what ``DirectionalLR.averaged_parameters`` does."""
        if self._average is None:
            raise ValueError(
                "averaged_parameters needs MetaCurvatureLR(..., horizon=...) or average=True, got average=False"
            )
        shown = self._shows_average
        # Before the first step there is nothing to average, and in the finish the iterates themselves count.
        as_they_are = self._steps == 0 or self._went_on_from_average
        self._shows_average = not as_they_are
        try:
            with nullcontext() if as_they_are or shown else self._average.in_place():
                yield
        finally:
            self._shows_average = shown

    # Stepping.

    def step(self) -> None:
        """Takes one step of the base at the rule's rate, and measures it where a reading is to be taken."""
        if self._shows_average:
            raise RuntimeError(
                "step() must not be called inside averaged_parameters(): the step would be lost at its end"
            )
        if self._steps == self._horizon and self._plan.is_finishing(self._steps):
            warn_user(
                f"horizon={self._horizon} steps have been taken, and the rate is that of the last one from now on; wrap with a "
                "larger horizon to train for longer",
                RuntimeWarning,
            )
        if self._started:
            self._later_step()
        else:
            self._first_step()

    def _first_step(self) -> None:
        under_scales = moving(self._base, self._rates, self._rates.first_shares())
        if not any(under_scales):
            self._base.step()
            self._count_step()
            self._begin_to_finish()
            return
        # The model may have been moved, or its dtype changed, since it was wrapped.
        if self._steps == 0:
            self._state = DirectionalState(self._plan, len(under_scales), self._device)
            self._average = IterateAverage(self._all_parameters()) if self._averages else None
        first = FirstStep(self._base, self._rates, self._draw)
        reading = first.take(under_scales, self._state, self._plan.factor(self._steps))
        self._rate_changed()
        step = self._steps
        if reading is not None:
            # RAdam's first steps are not normalised, the later ones are: each of them begins anew.
            self._started = not isinstance(self._base, RAdam) or step >= _RADAM_STEPS
            self._show_scale(self._group_rates())
        self._count_step()
        self._begin_to_finish()
        if reading is not None:
            self._record(step, reading, self._state.lr)

    def _later_step(self) -> None:
        step, rates = self._steps, self._rates_of_step()
        line = batch = None
        if self._times.is_due(step) and not self._plan.is_finishing(step):
            under_scales = moving(self._base, self._rates, rates)
            if any(under_scales):
                batch = self._draw()  # errors of the user's code arise before the step
                line = StepLine(under_scales)
        step_base_at(self._base, rates)
        if line is not None:
            scales, largest = self._scale_rates(), self._rates.largest(self._rates.shares())
            line.stepped(
                keep(self._base, self._rates, rates),
                [a * b for a, b in zip(scales, largest, strict=True)],
            )
        self._count_step()  # also where measuring it fails
        reading = None
        try:
            if line is not None and batch is not None:
                reading = self._read(line, batch)
        finally:
            self._begin_to_finish()
        if reading is not None:
            self._take_in(step, reading)

    def _count_step(self) -> None:
        if self._average is not None:
            if self._went_on_from_average and not self._plan.is_finishing(self._steps):
                self._average.restart()  # a checkpoint goes on towards a later horizon
                self._went_on_from_average = False
            # The finish takes its own noise out: from there on the iterates themselves count.
            if not self._went_on_from_average:
                self._average.take()
        self._steps += 1

    def _begin_to_finish(self) -> None:
        """Moves the parameters to the average where the next step is the first of the finish."""
        if (
            self._average is not None
            and not self._went_on_from_average
            and self._plan.is_finishing(self._steps)
        ):
            self._average.continue_from_it()
            self._went_on_from_average = True

    def _read(self, line: StepLine, batch: ProbeBatch) -> LineReading:
        """Reads the line of the step just taken; where this raises, the next step is measured instead."""
        try:
            return read_line(line, batch, self._state.lr)
        finally:
            line.go_after()

    def _take_in(self, step: int, reading: LineReading) -> None:
        measured_at = self._state.lr
        self._state.update(reading.numbers, searching=step < self._plan.search_ends)
        self._rate_changed()
        self._record(step, reading, measured_at)

    # Rates.

    def _rate_changed(self) -> None:
        """Drops what was derived from the state's former rate."""
        self._host_lr: list[float] | None = None
        self._last_rates: tuple[Any, list[Rate]] | None = None

    def _rates_of_step(self) -> list[Rate]:
        """Returns the learning rate of every group at this step, and shows it in the groups.

        The rates are computed anew only where something has changed.
        """
        groups = self._base.param_groups
        key = (
            self._plan.factor(self._steps),
            [(group["lr"], group.get("max_lr")) for group in groups],
        )
        if self._last_rates is not None and self._last_rates[0] == key:
            return self._last_rates[1]
        rates = self._group_rates()
        self._show_scale(rates)
        # A tensor's number may change behind its back.
        if not any(isinstance(value, Tensor) for value in (*rates, *(lr for lr, _ in key[1]))):
            self._last_rates = key, rates
        return rates

    def _scale_rates(self) -> list[Rate]:
        """Returns the rate of every scale, with the factor of the horizon; tensors where nothing may wait for the device."""
        factor = self._plan.factor(self._steps)
        if stays_on_device(self._base):
            return [lr * factor for lr in self._state.lr.unbind()]
        if self._host_lr is None:
            self._host_lr = self._state.lr.tolist()
        return [lr * factor for lr in self._host_lr]

    def _group_rates(self) -> list[Rate]:
        """Returns the learning rate of every group at the next step."""
        scales, shares = self._scale_rates(), self._rates.shares()
        return [
            scales[scale] * share
            for scale, share in zip(self._rates.scale_of_group, shares, strict=True)
        ]

    # Parameters.

    def _all_parameters(self) -> list[Tensor]:
        return [p for group in self._base.param_groups for p in group["params"]]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._all_parameters()[0].device
        return device

    def _draw(self) -> ProbeBatch:
        return self._model.batch(self._probes.draw(self._device), self._device)

    # Reporting.

    def _record(self, step: int, reading: LineReading, measured_at: Tensor) -> None:
        change = None if stays_on_device(self._base) else self._state.change
        interval = self._times.measured(step, change)
        lrs = (measured_at, self._state.lr)
        self._records.add(step, interval, reading, lrs, self._state.accepted)
        if self.on_update is not None:
            self.on_update(self._records.all()[-1])

    def _show_scale(self, rates: Sequence[Rate]) -> None:
        """Writes ``group["lr_scale"]``, the effective rate over the group's lr."""
        for group, rate in zip(self._base.param_groups, rates, strict=True):
            lr = group["lr"]
            if isinstance(rate, Tensor):
                group["lr_scale"] = rate / lr
            else:
                group["lr_scale"] = rate / float(lr) if lr > 0 else 0.0

    def group_added(self) -> None:
        """Takes in the parameter group that was just added to the base."""
        before = self._rates.references
        self._rates.group_added()
        if self.rule.per_group:
            self._state.add_scale()
            self._rate_changed()
        else:  # the rates of the other groups stay
            self._state.lr = self._state.lr * (self._rates.references[0] / before[0])
            self._rate_changed()
        if self._average is not None:
            self._average.extend(self._base.param_groups[-1]["params"])

    def describe(self) -> str:
        """Describes the rule and its settings, for ``repr``."""
        return f"rule={self.rule!r}, horizon={self._horizon}, average={self._averages}"

    # Resuming.

    def own_state(self) -> dict[str, Any]:
        """Returns numbers, strings and the average's tensors, for a state dict."""
        return {
            "version": _STATE_VERSION,
            "rule": DirectionalRule.name,
            "seed": self.seed,
            "steps": self._steps,
            "started": self._started,
            "skipped": self.skipped_readings,
            "first_lrs": self._rates.state(),
            "state": self._state.state(),
            "times": self._times.state(),
            "probes": self._probes.drawn,
            "average": None if self._average is None else self._average.state(),
            "went_on_from_average": self._went_on_from_average,
        }

    def _begin_afresh(self) -> None:
        """Starts anew with the groups of a bare base's checkpoint, which has just been loaded."""
        self._rates = GroupRates(self._base, self.rule.per_group)
        self._reset(self._averages_by_argument)

    def checked_own_state(self, state: Any) -> Callable[[], None]:
        """Checks ``state`` (None: a checkpoint of the bare base) and returns a function that loads it."""
        if state is None:
            return self._begin_afresh
        name = "state_dict['metacurv']"
        if not isinstance(state, dict) or (state.get("version"), state.get("rule")) != (
            _STATE_VERSION,
            DirectionalRule.name,
        ):
            raise ValueError(
                f"{name} must be a dict of version {_STATE_VERSION} of rule='directional', got {_validate.describe(state)}"
            )
        missing = sorted(self.own_state().keys() - state.keys())
        if missing:
            raise ValueError(f"{name} must have all its entries, lacks {missing}")
        counters = {
            key: _validate.integer(f"{name}[{key!r}]", state[key], low=0)
            for key in ("seed", "steps", "skipped", "probes")
        }
        averages = state["average"] is not None
        if self._asked_average is not None and averages != self._asked_average:
            raise ValueError(
                f"{name} must be of MetaCurvatureLR(average={self._asked_average}), got one of average={averages}"
            )
        if averages:
            average = self._average or IterateAverage(self._all_parameters())
            average.check(state["average"], f"{name}['average']")
        first = state["first_lrs"]
        if not isinstance(first, list) or len(first) != len(self._base.param_groups):
            raise ValueError(
                f"{name}['first_lrs'] must be a list of {len(self._base.param_groups)} numbers, got {_validate.describe(first)}"
            )
        for index, lr in enumerate(first):
            _validate.real(f"{name}['first_lrs'][{index}]", lr, low=0)
        for key in ("started", "went_on_from_average"):
            if not isinstance(state[key], bool):
                raise TypeError(
                    f"{name}[{key!r}] must be True or False, got {_validate.describe(state[key])}"
                )
        # On the device where the parameters are by now.
        plan = self._planned(averages)
        empty = DirectionalState(plan, len(self._rates.scales), self._device)
        rule_state = empty.checked(state["state"], f"{name}['state']", started=state["started"])
        times = _times(plan).checked(state["times"], f"{name}['times']")

        def load() -> None:
            self._reset(averages)
            self.seed = counters["seed"]
            self._steps = counters["steps"]
            self._skipped = counters["skipped"]
            self._started = state["started"]
            self._went_on_from_average = state["went_on_from_average"]
            self._rates.load(state["first_lrs"])
            self._state, self._times = rule_state, times
            self._probes.go_to(counters["probes"], seed=self.seed)
            if self._average is not None:
                self._average.load(state["average"])
            if self._started:
                self._show_scale(self._group_rates())

        return load


def _times(plan: Plan) -> MeasuringTimes:
    return MeasuringTimes(plan.interval, plan.longest, plan.regular_until)


def _has_plain_momentum(base: Optimizer) -> bool:
    """Tells whether a step grows with the gradient and, by momentum, with its past: SGD's does, not RMSprop's or Muon's."""
    return isinstance(base, SGD) and any(group["momentum"] > 0 for group in base.param_groups)

"""The learning rate from slope and curvature along the optimizer's own step, measured on batches drawn for it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Optimizer, RAdam, Rprop

from metacurv import _validate
from metacurv.base_step import Rate, stays_on_device, step_base_at
from metacurv.directional.group_rates import GroupRates
from metacurv.directional.iterate_average import IterateAverage
from metacurv.directional.probe_batches import ProbeBatches
from metacurv.directional.probe_model import ProbeBatch, ProbeModel
from metacurv.directional.record import DirectionalRecord, Records
from metacurv.directional.step_line import StepLine
from metacurv.directional.timing import MeasuringTimes
from metacurv.estimators.line_reading import LineReading, read_lines
from metacurv.rules.directional import DirectionalRule
from metacurv.rules.directional_state import DirectionalState

_STATE_VERSION = 1
_FIRST_BATCHES = 4  # whose mean slope and curvature give the first rate
_FIRST_TRIES = 10  # rounds of them, while the slope is not positive
_HALVINGS = 40  # of a first rate that raises the loss
_RADAM_STEPS = 5  # that are not normalised (Liu et al. 2020: rho_t <= 5, for beta2 up to 0.9999)


class DirectionalControl:
    """What ``MetaCurvatureLR`` does with ``rule="directional"``; its arguments are described there."""

    def __init__(
        self,
        base: Optimizer,
        rule: DirectionalRule,
        *,
        model: nn.Module | None,
        loss_fn: Callable[[Any, Any], Tensor] | None,
        probe: Any,
        horizon: int | None,
        average: bool,
        seed: int,
        backend: str,
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
        if not isinstance(average, bool):
            raise TypeError(f"average must be True or False, got {_validate.describe(average)}")
        self._base = base
        self.rule = rule
        self.seed = _validate.seed(seed)
        self.on_update = on_update
        self._backend = _validate.backend(backend)
        self._model = ProbeModel(model, loss_fn, base)
        self._probes = ProbeBatches(probe, self.seed)
        self._horizon = None if horizon is None else _validate.integer("horizon", horizon, low=1)
        self._plan = rule.plan(
            horizon=self._horizon, average=average, plain_momentum=_has_plain_momentum(base)
        )
        self._rates = GroupRates(base, rule.per_group)
        self._averages = average
        self._shows_average = False
        self._reset()

    def _reset(self) -> None:
        """Before the first step: there is no rate."""
        self._steps = 0
        self._started = False
        self._skipped = 0
        self._state = DirectionalState(self._plan, len(self._rates.scales), self._device)
        self._times = MeasuringTimes(
            self._plan.interval, self._plan.longest, self._plan.regular_until
        )
        self._probes.go_to(0, seed=self.seed)
        self._average = IterateAverage(self._all_parameters()) if self._averages else None
        self._records = Records()
        self._host_lr: list[float] | None = None

    # What a user reads.

    @property
    def effective_lrs(self) -> list[float]:
        """Of every group; nan before the first step, which finds the rate."""
        if not self._started:
            return [math.nan] * len(self._base.param_groups)
        return [float(rate) for rate in self._group_rates()]

    @property
    def skipped_readings(self) -> int:
        """Readings with a number that was not finite."""
        return sum(not record.accepted for record in self.history) + self._skipped

    @property
    def history(self) -> list[DirectionalRecord]:
        """All readings."""
        return self._records.all()

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """See ``MetaCurvatureLR``."""
        if self._average is None:
            raise ValueError(
                "averaged_parameters needs MetaCurvatureLR(..., average=True), got average=False"
            )
        self._shows_average = True
        try:
            with self._average.in_place():
                yield
        finally:
            self._shows_average = False

    # Stepping.

    def step(self) -> None:
        """One step of the base at the rate of the rule; where it is due, measured."""
        if self._shows_average:
            raise RuntimeError(
                "step() must not be called inside averaged_parameters(): the step would be lost at its end"
            )
        if not self._started:
            self._first_step()
        else:
            rates = self._group_rates()
            is_due = self._times.is_due(self._steps) and not self._plan.is_finishing(self._steps)
            if not is_due or not self._measured_step_of_base(rates):
                step_base_at(self._base, rates)
            self._show_scale(rates)
        self._steps += 1
        if self._average is not None:
            self._average.take()

    def _first_step(self) -> None:
        """Steps the base at a rate of 1, puts that back, and takes the part of it that slope and curvature allow."""
        shares = self._rates.first_shares()
        moving = self._moving(shares)
        if not any(moving):
            self._base.step()
            return
        # The model may have been moved, or its dtype changed, since it was wrapped.
        if self._steps == 0:
            self._state = DirectionalState(self._plan, len(moving), self._device)
            self._average = IterateAverage(self._all_parameters()) if self._averages else None
        batches = [self._draw() for _ in range(_FIRST_BATCHES)]
        line = StepLine(moving, self._backend)
        try:
            step_base_at(self._base, shares)
            ones = [1.0] * len(moving)
            line.stepped(self._keep(shares), ones)
            if not bool(line.is_finite):
                raise ValueError(
                    "gradients must be finite at the first step, got a step that is not"
                )
            if not bool(line.reach.any()):
                line.go_before()
                return  # gradients of zeros: there is nothing to find a rate from
            reading = self._first_reading(line, batches)
            self._state.begin(reading.loss, reading.slope.abs(), reading.curvature)
            self._halve_while_it_rises(line, batches, reading.loss)
        except BaseException:
            line.go_before()
            raise
        self._host_lr = None
        # RAdam's first steps are not normalised, the later ones are: each of them begins anew.
        self._started = not isinstance(self._base, RAdam) or self._steps >= _RADAM_STEPS
        self._record(reading, torch.ones_like(reading.loss), self._state.lr)
        self._show_scale(self._group_rates())

    def _first_reading(self, line: StepLine, batches: list[ProbeBatch]) -> LineReading:
        """The mean over batches, other ones while the slope says that the step goes uphill."""
        for attempt in range(_FIRST_TRIES):
            if attempt:
                batches[:] = [self._draw() for _ in range(_FIRST_BATCHES)]
            readings = [self._read(line, batch) for batch in batches]
            mean = LineReading(
                *(
                    torch.stack(parts).mean(0)
                    for parts in zip(
                        *((r.loss, r.slope, r.curvature) for r in readings), strict=True
                    )
                )
            )
            still = line.reach == 0  # nothing under this scale has a gradient
            downhill = (mean.slope > 0) & (mean.curvature > 0)
            if bool((downhill | still).all() & torch.isfinite(mean.loss)):
                return mean
        numbers = torch.cat([mean.loss.reshape(1), mean.slope, mean.curvature])
        if not bool(torch.isfinite(numbers).all()):
            raise ValueError(
                f"loss_fn and the gradients must be finite at the first step, got a probe loss of {float(mean.loss)} and "
                f"slopes {mean.slope.tolist()} along the step"
            )
        if not bool(((mean.curvature > 0) | still).all()):
            raise ValueError(
                "loss_fn must be curved in the model's output (twice differentiable, and not linear in pieces as L1 and hinge "
                f"losses are) and the model must answer to the step, got curvatures {mean.curvature.tolist()} along it"
            )
        return mean

    def _halve_while_it_rises(
        self, line: StepLine, batches: list[ProbeBatch], before: Tensor
    ) -> None:
        # A scheduler may begin far below the rate that is found.
        largest = [float(share) for share in self._rates.largest(self._rates.shares())]
        shares, scales = self._rates.first_shares(), self._rates.scale_of_group
        for _ in range(_HALVINGS):
            lr = [rate * part for rate, part in zip(self._state.lr.tolist(), largest, strict=True)]
            rates = [lr[scale] * share for scale, share in zip(scales, shares, strict=True)]
            line.step_to(self._keep(rates, shares), lr)
            after = torch.stack([batch.value() for batch in batches]).mean()
            if bool(self._model.over_ranks(after) <= before):
                return
            self._state.lr = self._state.lr / 2

    def _measured_step_of_base(self, rates: Sequence[Rate]) -> bool:
        """Returns: whether a step was taken; none is where there is nothing to measure."""
        moving = self._moving(rates)
        if not any(moving):
            return False
        batch = self._draw()  # what may fail in the user's code fails before the step
        line = StepLine(moving, self._backend)
        step_base_at(self._base, rates)
        scales, largest = self._scale_rates(), self._rates.largest(self._rates.shares())
        line.stepped(self._keep(rates), [a * b for a, b in zip(scales, largest, strict=True)])
        try:
            reading = self._read(line, batch)
        finally:
            line.go_after()
        measured_at = self._state.lr
        accepted = self._state.update(
            reading.loss,
            reading.slope,
            reading.curvature,
            searching=self._steps < self._plan.search_ends,
        )
        self._host_lr = None
        self._record(reading, accepted, measured_at)
        return True

    def _read(self, line: StepLine, batch: ProbeBatch) -> LineReading:
        """Slope and curvature where the step began. Leaves the parameters somewhere on the line."""
        line.go_before()
        sides = []
        for scale in range(len(line.reach)):
            outputs = []
            for sign in (1, -1):
                line.move(scale, sign)
                outputs.append(batch.output())
            line.go_before(scale)
            sides.append(outputs)
        inverse = torch.where(line.reach > 0, 0.5 / line.reach, 0.0)
        tangents = [
            [
                _difference(plus, minus) * by.to(plus.dtype)
                for plus, minus in zip(*outputs, strict=True)
            ]
            for by, outputs in zip(inverse, sides, strict=True)
        ]
        centre = [(plus + minus) / 2 for plus, minus in zip(*sides[0], strict=True)]
        weights = self._state.lr if self._started else torch.ones_like(line.reach)
        with batch.loss_quiet():
            reading = read_lines(batch.loss, centre, tangents, weights)
        packed = self._model.over_ranks(
            torch.cat([reading.loss.reshape(1), reading.slope, reading.curvature])
        )
        scales = len(line.reach)
        return LineReading(packed[0], packed[1 : 1 + scales], packed[1 + scales :])

    # Rates.

    def _scale_rates(self) -> list[Rate]:
        """Of every scale, with the factor of the horizon; tensors where nothing may wait for the device."""
        factor = self._plan.factor(self._steps)
        if stays_on_device(self._base):
            return [lr * factor for lr in self._state.lr.unbind()]
        if self._host_lr is None:
            self._host_lr = self._state.lr.tolist()
        return [lr * factor for lr in self._host_lr]

    def _group_rates(self) -> list[Rate]:
        """The learning rate of every group at the next step."""
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

    def _stepped(self, rates: Sequence[Rate]) -> list[list[tuple[int, Tensor]]]:
        """What the base is about to step at these rates of the groups, under each scale: group and parameter."""
        groups = self._base.param_groups
        return [
            [
                (g, p)
                for g in scale
                if _moves(rates[g])
                for p in groups[g]["params"]
                if p.grad is not None
            ]
            for scale in self._rates.scales
        ]

    def _moving(self, rates: Sequence[Rate]) -> list[list[Tensor]]:
        return [[p for _, p in scale] for scale in self._stepped(rates)]

    def _keep(
        self, rates: Sequence[Rate], moved_at: Sequence[Rate] | None = None
    ) -> list[list[Rate]]:
        """For every tensor of ``_moving(moved_at)``: what decoupled weight decay at ``rates`` leaves of it."""
        of_group = self._rates.keep(rates)
        stepped = self._stepped(rates if moved_at is None else moved_at)
        return [[of_group[g] for g, _ in scale] for scale in stepped]

    def _draw(self) -> ProbeBatch:
        return self._model.batch(self._probes.draw(self._device), self._device)

    # Reporting.

    def _record(self, reading: LineReading, accepted: Tensor, measured_at: Tensor) -> None:
        interval = self._times.measured(self._steps, self._state.change)
        lrs = (measured_at, self._state.lr)
        self._records.add(self._steps, interval, reading, lrs, accepted)
        if self.on_update is not None:
            self.on_update(self._records.all()[-1])

    def _show_scale(self, rates: Sequence[Rate]) -> None:
        """``group["lr_scale"]``: the effective rate over the group's lr."""
        for group, rate in zip(self._base.param_groups, rates, strict=True):
            lr = group["lr"]
            if isinstance(rate, Tensor):
                group["lr_scale"] = rate / lr
            else:
                group["lr_scale"] = rate / float(lr) if lr > 0 else 0.0

    def group_added(self) -> None:
        """The base has a new parameter group."""
        before = self._rates.references
        self._rates.group_added()
        if self.rule.per_group:
            self._state.add_scale()
        else:  # the rates of the other groups stay
            self._state.lr = self._state.lr * (self._rates.references[0] / before[0])
            self._host_lr = None
        if self._average is not None:
            self._average.extend(self._base.param_groups[-1]["params"])

    def describe(self) -> str:
        """The rule and its settings, for ``repr``."""
        return f"rule={self.rule!r}, horizon={self._horizon}, average={self._averages}"

    # Resuming.

    def own_state(self) -> dict[str, Any]:
        """Numbers, strings and the averages' tensors."""
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
        }

    def _begin_afresh(self) -> None:
        """With the groups as a checkpoint of the bare base has them."""
        self._rates = GroupRates(self._base, self.rule.per_group)
        self._reset()

    def checked_own_state(self, state: Any) -> Callable[[], None]:
        """Checks ``state`` (None: a checkpoint of the bare base) and returns what loads it."""
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
        if (state["average"] is None) != (self._average is None):
            raise ValueError(
                f"{name} must be of MetaCurvatureLR(average={self._averages}), got one of average={not self._averages}"
            )
        if self._average is not None:
            self._average.check(state["average"], f"{name}['average']")
        first = state["first_lrs"]
        if not isinstance(first, list) or len(first) != len(self._base.param_groups):
            raise ValueError(
                f"{name}['first_lrs'] must be a list of {len(self._base.param_groups)} numbers, got {_validate.describe(first)}"
            )
        for index, lr in enumerate(first):
            _validate.real(f"{name}['first_lrs'][{index}]", lr, low=0)
        rule_state = self._state.checked(state["state"], f"{name}['state']")
        times = self._times.checked(state["times"], f"{name}['times']")

        def load() -> None:
            self._reset()
            self.seed = counters["seed"]
            self._steps = counters["steps"]
            self._skipped = counters["skipped"]
            self._started = bool(state["started"])
            self._rates.load(state["first_lrs"])
            self._state, self._times = rule_state, times
            self._probes.go_to(counters["probes"], seed=self.seed)
            if self._average is not None:
                self._average.load(state["average"])

        return load


def _moves(rate: Rate) -> bool:
    """A rate of 0 takes its group out of what is measured; one on a GPU is not looked at."""
    return isinstance(rate, Tensor) or rate != 0


def _difference(plus: Tensor, minus: Tensor) -> Tensor:
    """0 where both are the same, also where that is infinity: masked logits."""
    return torch.where(plus == minus, 0.0, plus - minus)


def _has_plain_momentum(base: Optimizer) -> bool:
    """Whether a step grows with the gradient and, through momentum, with its past: SGD's, not that of RMSprop or Muon."""
    return isinstance(base, SGD) and any(group["momentum"] > 0 for group in base.param_groups)

"""Runs the directional rule: an early rate, a race where that says little, and a rate that settles and is held."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor, nn
from torch.optim import ASGD, SGD, Optimizer, RAdam, Rprop

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.parameters import number_parameters
from metacurv.optim.base_step import step_base_at
from metacurv.optim.carried_state import OfParameters
from metacurv.optim.directional.checked_state import (
    NAME,
    VERSION,
    check_form,
    check_numbers,
    without_missing,
)
from metacurv.optim.directional.early_rate import MAX_LR, MIN_LR, EarlyRate
from metacurv.optim.directional.effective_rates import EffectiveRates
from metacurv.optim.directional.first_step import FirstStep
from metacurv.optim.directional.group_rates import GroupRates
from metacurv.optim.directional.guard import Guard
from metacurv.optim.directional.history import History
from metacurv.optim.directional.iterate_average import IterateAverage
from metacurv.optim.directional.judge import Judge
from metacurv.optim.directional.line_curvature import LineReading
from metacurv.optim.directional.moved_parameters import keep, moving
from metacurv.optim.directional.probe_batches import LATER, ProbeBatches
from metacurv.optim.directional.probe_model import ProbeBatch, ProbeModel
from metacurv.optim.directional.race import FACTOR, Outcome, Race
from metacurv.optim.directional.read_line import read_line
from metacurv.optim.directional.record import DirectionalRecord
from metacurv.optim.directional.rule import ASSUMED_STEPS, DirectionalRule, Settling, WarmUp
from metacurv.optim.directional.settling import settled
from metacurv.optim.directional.snapshot import Training, copy_all, like
from metacurv.optim.directional.step_line import StepLine
from metacurv.optim.group_parameters import named_parameters
from metacurv.processes.fully_sharded import reshard
from metacurv.processes.local_tensors import locals_of

_RADAM_STEPS = 5  # are not normalised (Liu et al. 2020: rho_t <= 5, for beta2 up to 0.9999)
_READ_EVERY = 2  # early steps
_LEARNED = 0.25  # part of the first loss that is lost where the first steps went far
_DECAYED = 0.95  # part of the first rate that no warm-up leaves in the finish
_HARMED = 0.02  # part of it that is gained where they went astray


class DirectionalControl:
    """Measures, races, steps and averages for ``DirectionalLR``, whose docstring describes the arguments."""

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
        on_update: Callable[[DirectionalRecord], None] | None,
        process_group: Any,
        batch_fn: Callable[[Any], Any] | None,
        output: Callable[[Any], Any] | None,
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
        number_parameters(named_parameters(base), may_be_frozen=True)  # checks them
        if not isinstance(average, bool):
            raise TypeError(f"average must be True or False, got {_validate.describe(average)}")
        self._base = base
        self.rule = rule
        self.seed = _validate.seed(seed)
        self.history = History(on_update)
        self._probes = ProbeBatches(probe, self.seed, _validate.callback("batch_fn", batch_fn))
        self._model = ProbeModel(model, loss_fn, base, process_group, output)
        self._to_load: Callable[[], None] | None = (
            None  # what a checkpoint has, while the probe is still to come
        )
        self._state_to_load: dict[str, Any] | None = None
        self._horizon = None if horizon is None else _validate.integer("horizon", horizon, low=1)
        self._rates = GroupRates(base, rule.per_group)
        self._averages = average
        self._plan = rule.plan(horizon=self._horizon, average=average)
        self._shows_average = False
        self._is_evaluating = False
        self._iterate: list[Tensor] | None = None  # while the average is in its place
        self._had_state = bool(base.state)  # as Adagrad has
        self._reset()

    def _reset(self) -> None:
        """Goes back to before the first step, where there is no rate."""
        self._steps = 0
        self._started = False
        self._began = 0  # the step that found the first rate
        self._early_is_over = False
        self._warm_up = WarmUp(0, 0)
        self._settling: Settling | None = None
        self._skipped = 0
        self._model.ranks.same = {}  # until the next step
        self._has_warned = False  # of steps beyond the horizon
        most = MAX_LR if self.rule.max_lr is None else min(self.rule.max_lr, MAX_LR)
        self._early = EarlyRate(len(self._rates.scales), _has_plain_momentum(self._base), most)
        self._probes.go_to(0, seed=self.seed)
        self._average = IterateAverage(self._all_parameters()) if self._averages else None
        self._training = Training(self._base, self._model.model, self._average)
        self._judge: Judge | None = None
        self._guard: Guard | None = None
        self._race: Race | None = None
        self._raced = 0  # the scale that is racing
        self._to_race: list[int] = []  # the scales after it
        self._races = 1  # of all of them, which share the time
        self._went_on_from_average = False
        self.history.clear()
        self._effective = EffectiveRates(self._base, self._rates, self.rule.max_lr)
        for group in self._base.param_groups:
            group["lr_scale"] = math.nan  # until a step finds a rate

    # Results for the user.

    @property
    def effective_lrs(self) -> list[float]:
        """The learning rate of every group; nan before the first step, which finds the rate."""
        if not self._started:
            return [math.nan] * len(self._base.param_groups)
        return [float(rate) for rate in self._effective.of_groups(self._scale_rates())]

    @property
    def skipped_readings(self) -> int:
        """The number of readings with a number that was not finite."""
        return sum(not record.accepted for record in self.history.records) + self._skipped

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """Does what ``DirectionalLR.averaged_parameters`` does."""
        if self._average is None:
            raise ValueError(
                "averaged_parameters needs the average of MetaCurvatureLR, got average=False"
            )
        shown = self._shows_average
        self._shows_average = not self._counts_itself
        try:
            self._show()
            yield
        finally:
            self._shows_average = shown
            self._show()

    def _show(self) -> None:
        """Puts the average or the iterate into the parameters, whichever is to be there."""
        is_wanted = (self._shows_average or self._is_evaluating) and not self._counts_itself
        if is_wanted == (self._iterate is not None):
            return
        if self._iterate is not None:
            copy_all(self._training.parameters(), self._iterate)
            self._iterate = None
        elif self._average is not None:
            self._iterate = self._average.swap_in()
        reshard(self._model.model)

    @property
    def _counts_itself(self) -> bool:
        """True where the iterate is the result: before the first step, and in the finish, where noise goes by itself."""
        return self._average is None or self._steps == 0 or self._went_on_from_average

    def eval(self) -> None:
        """Does what ``DirectionalLR.eval`` does."""
        self._is_evaluating = True
        self._show()

    def train(self) -> None:
        """Does what ``DirectionalLR.train`` does."""
        self._is_evaluating = False
        self._show()

    # Stepping.

    def step(self) -> None:
        """Takes one step of the base at the rule's rate, and measures what is to be measured after it."""
        if self._shows_average or self._is_evaluating:
            where = "inside averaged_parameters()" if self._shows_average else "after eval()"
            raise RuntimeError(
                f"step() must not be called {where}, where it would be lost; "
                + ("leave the block" if self._shows_average else "call train() on the optimizer")
            )
        if self._horizon is not None and self._steps >= self._horizon and not self._has_warned:
            self._has_warned = True
            warn_user(
                f"horizon={self._horizon} steps have been taken, and the rate is that of the last one from now on; wrap with a "
                "larger horizon to train for longer",
                RuntimeWarning,
            )
        before = self._steps
        if self._model.ranks.count > 1:
            self._model.ranks.same = self._same_on_all_ranks()
        try:
            if self._started:
                self._later_step()
            else:
                self._first_step()
        finally:
            if self._steps > before:  # also where a reading raises
                self._after_step()
                self.history.report()

    def _first_step(self) -> None:
        under_scales = moving(self._base, self._rates, self._rates.first_shares())
        if not any(under_scales):
            self._base.step()
            self._count_step()
            return
        # The model may have been moved, or its dtype changed, since it was wrapped.
        if self._steps == 0:
            self._average = IterateAverage(self._all_parameters()) if self._averages else None
            self._training = Training(self._base, self._model.model, self._average)
        drawn = self._probes.drawn
        try:
            if self._judge is None:
                self._begin_to_judge()
            is_first = not any(self._early.lr)
            first = FirstStep(self._base, self._rates, self._draw)
            reading = first.take(under_scales, self._early, self._factor())
        except BaseException:
            self._probes.go_to(drawn, seed=self.seed)
            if drawn == 0:
                self._judge = self._guard = None
            raise
        self._training.entries = first.changed_entries
        if is_first and first.before is not None and self._guard is not None:
            self._guard.base = first.before
        step = self._steps
        if reading is not None:
            # RAdam's first steps are not normalised, the later ones are: each of them begins anew.
            self._started = not isinstance(self._base, RAdam) or step >= _RADAM_STEPS
            self._began = step
            self._effective.of_step(self._scale_rates())  # shows them
        self._count_step()
        if reading is not None:
            lr = self._early.lr
            self.history.add_reading(step, reading, lr, self.effective_lrs, lr, accepted=True)

    def _later_step(self) -> None:
        step, rates = self._steps, self._effective.of_step(self._scale_rates())
        line = batch = None
        if not self._early_is_over and (step - self._began) % _READ_EVERY == 0:
            under_scales = moving(self._base, self._rates, rates)
            if any(under_scales):
                batch = self._draw()  # errors of the user's code arise before the step
                dtypes = self._model.ranks.together(batch.computed_in, self._device)
                line = StepLine(under_scales, dtypes)
        step_base_at(self._base, rates)
        if line is not None:
            line.stepped(keep(self._base, self._rates, rates), self._rates.largest(rates))
        self._count_step()  # also where measuring it fails
        if line is not None and batch is not None:
            self._take_in(step, self._read(line, batch))

    def _count_step(self) -> None:
        if self._average is not None:
            if self._went_on_from_average and not self._plan.is_finishing(self._steps):
                self._average.restart()  # a checkpoint goes on towards a later horizon
                self._went_on_from_average = False
            # The finish takes its own noise out: from there on the iterates themselves count.
            if not self._went_on_from_average:
                self._average.take()
        self._steps += 1

    def _after_step(self) -> None:
        """Goes from phase to phase, between two steps."""
        step = self._steps
        if self._race is not None:
            ends = self._plan.is_finishing(step)
            self._end_race(self._race.settle() if ends else self._race.stepped())
        elif self._started and not self._early_is_over:
            if step >= self._began + self._plan.early_steps:
                self._end_early_steps()  # where the user's loss raises, the next step tries again
                self._early_is_over = True
        elif self._started and self._plan.begins_anew(step):
            if not self._begin_races([] if self.rule.race == "auto" else self._all_scales()):
                self._settling = self._plan.settling(step)
        elif self._started:
            self._look_about()
        if (
            self._average is not None
            and not self._went_on_from_average
            and self._plan.is_finishing(step)
        ):
            self._average.continue_from_it()
            self._went_on_from_average = True
            self._warn_of_scheduler()
        if step == self._horizon and self._guard is not None and self._guard.end():
            self._record("went back", self._guard.loss)

    def _warn_of_scheduler(self) -> None:
        """Warns, where the finish begins, of a scheduler that has brought the rates down already."""
        left = max(float(share) for share in self._rates.largest(self._rates.shares()))
        if left < _DECAYED:
            warn_user(
                f"horizon={self._horizon} brings the learning rate to zero, and a scheduler has brought it to {left:.0%} of it "
                "by now: leave the scheduler out, or the horizon",
                UserWarning,
            )

    def _end_early_steps(self) -> None:
        """Begins a race, or the training anew with the rate that was found.

        At the edge of progress, without a warm-up, the first steps do harm that lasts. A race is where they did little, and
        where they did harm it begins where they did.
        """
        assert self._guard is not None
        scales = self._all_scales()
        if self.rule.race == "auto":
            scales = [s for s in scales if self._early.is_noise(s)]
        if scales:
            progress = self._early_progress()
            if self.rule.race == "auto" and progress > _LEARNED:
                scales = []
            elif not progress >= -_HARMED:
                self._guard.begin_again()
        if self._begin_races(scales):
            return
        if not self._plan.is_finishing(self._steps):
            self._guard.begin_again()
            self._warm_up = self._plan.warm_up(self._steps)
        self._settling = self._plan.settling(self._steps + self._warm_up.steps)

    def _early_progress(self) -> float:
        """Returns the part of the first loss that the first steps took away; slopes that fell much are no noise."""
        assert self._judge is not None
        first = self._judge.first_loss(quick=True)
        lost = first - self._judge.loss(of_average=False, quick=True)
        return lost / abs(first) if first else lost

    def _look_about(self) -> None:
        """Looks at the noise and lets the guard look, where it is time to."""
        step, has_died = self._steps, False
        if self._settling is not None and self._average is not None and self._judge is not None:
            turn = self._settling.turn(step)
            if turn is not None and not self._plan.is_finishing(step):
                loss, noise, progress = self._judge.noise(turn)
                self._early.scale_by(settled(noise, progress, turn))
                self._record("settling", loss, noise=noise)
                has_died = not math.isfinite(loss + noise)
        if self._guard is not None and (has_died or self._plan.is_guarded(step)):
            self._look(has_died=has_died)

    def _read(self, line: StepLine, batch: ProbeBatch) -> LineReading:
        """Reads the line of the step just taken; where this raises, the step counts all the same."""
        try:
            return read_line(line, batch, self._early_lr)
        finally:
            line.go_after()

    def _take_in(self, step: int, reading: LineReading) -> None:
        measured_at = list(self._early.lr)
        slope, curvature = reading.slope.tolist(), reading.curvature.tolist()
        accepted = self._early.take(slope, curvature)
        self.history.add_reading(
            step, reading, self._early.lr, self.effective_lrs, measured_at, accepted=accepted
        )

    # Judging: the race and the guard.

    def _begin_to_judge(self, first: list[float] | None = None) -> None:
        """Draws the batches by which candidates and the guard judge, before the first step.

        Args:
            first: their losses then, where a checkpoint has them.
        """
        self._judge = Judge(
            self._training, self._draw_to_judge, self._horizon or ASSUMED_STEPS, first
        )
        self._guard = Guard(self._training, self._judge, keeps_best=self.rule.stop_early)

    def _draw_to_judge(self) -> tuple[ProbeBatch, Any]:
        pair = self._draw_pair()
        return self._model.batch(pair, self._device), pair

    def _all_scales(self) -> list[int]:
        return list(range(len(self._rates.scales)))

    def _begin_races(self, scales: list[int]) -> bool:
        """Begins the races of these scales, one after the other; tells whether there is one, and time for it."""
        self._races = max(1, len(scales))
        return bool(scales) and self._race_of(scales)

    def _race_of(self, scales: list[int]) -> bool:
        """Begins the race of the first of these scales, the others to follow; tells whether there is time for one."""
        lengths = self._plan.rounds(self._steps, self._races)
        if not self.rule.candidates or lengths is None or self._judge is None:
            return False
        s, *self._to_race = scales
        self._raced, highest = s, math.inf
        if self.rule.max_lr is not None:
            highest = max(0, math.floor(math.log(self.rule.max_lr / self._early.lr[s], FACTOR)))
        self._race = Race(
            self._training,
            self._judge.verdict,
            self._judge.finds_alive,
            first=self._judge.first_loss(quick=False),
            lengths=lengths,
            most_steps=self._plan.most_raced(self._steps, self._races),
            candidates=self.rule.candidates,
            highest=highest,
            wide=self._settling is None and self._early.is_noise(s),  # later the rate is known
        )
        return True

    def _end_race(self, outcome: Outcome | None, *, more: bool = True) -> None:
        """Takes in the outcome of the race where there is one, and begins the next scale's where ``more`` are wanted."""
        if outcome is None:
            return
        assert self._race is not None
        s, before = self._raced, self._early.lr[self._raced]
        raced = [(before * FACTOR**c.exponent, c.loss) for c in self._race.candidates if c.losses]
        self._early.lr[s] = min(max(before * math.exp(outcome.shift), MIN_LR), MAX_LR)
        self._race = None
        more = more and bool(self._to_race) and not self._plan.is_finishing(self._steps)
        if not more or not self._race_of(self._to_race):
            self._settling = self._plan.settling(self._steps)
        self._record("race", min((loss for _, loss in raced), default=math.nan), raced)

    def _look(self, *, has_died: bool) -> None:
        """Lets the guard look, and halves the rates where it has taken the training back."""
        assert self._guard is not None
        loss, went_back = self._guard.look(
            of_average=not self._went_on_from_average, has_died=has_died
        )
        if went_back:
            self._early.scale_by(0.5)
        self._record("went back" if went_back else "guard", loss)

    # Rates.

    def _factor(self) -> float:
        """Returns the factor of warm-up and finish on the rates of the next step."""
        return self._plan.factor(self._steps) * self._warm_up.factor(self._steps)

    def _scale_rates(self) -> list[float]:
        """Returns the rate of every scale at the next step, with the factor of the horizon."""
        factor = self._factor()
        rates = [lr * factor for lr in self._early.lr]
        if self._race is not None:
            rates[self._raced] *= FACTOR**self._race.exponent
        return rates

    # Parameters.

    def _all_parameters(self) -> list[Tensor]:
        return [p for group in self._base.param_groups for p in group["params"]]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._all_parameters()[0].device
        return device

    @property
    def _early_lr(self) -> Tensor:
        return torch.tensor(self._early.lr, dtype=torch.float64, device=self._device)

    # Probes and ranks.

    def _draw(self) -> ProbeBatch:
        return self._model.batch(self._draw_pair(), self._device)

    def _draw_pair(self) -> tuple[Any, Any]:
        """Draws a pair of the probe; where it raises an error on one rank, all raise."""
        device = self._device
        return self._model.ranks.together(lambda: self._probes.draw(device), device)

    def _same_on_all_ranks(self) -> dict[str, float]:
        """Returns what all ranks must hold, by name: else they would read at different steps, or train at different rates."""
        rule, rates = self.rule, self.effective_lrs if self._started else self._rates.shares()
        return {
            "horizon": float(self._horizon or -1),
            "average": float(self._averages),
            "race": float(-1 if rule.race == "auto" else rule.race),
            "stop_early": float(rule.stop_early),
            "the number of steps": float(self._steps),
            **{f"the learning rate of group {g}": float(rate) for g, rate in enumerate(rates)},
        }

    # Reporting.

    def _record(
        self,
        event: Literal["race", "settling", "guard", "went back"],
        loss: float,
        candidates: Sequence[tuple[float, float]] = (),
        noise: float = math.nan,
    ) -> None:
        lr, effective = self._early.lr, self.effective_lrs
        self.history.add(self._steps, event, loss, lr, effective, candidates, noise)

    def group_added(self) -> None:
        """Takes in the parameter group that was just added to the base."""
        if self._race is not None:
            added = self._base.param_groups.pop()  # copies of the race are without it
            try:
                self._end_race(self._race.settle(), more=False)
            finally:
                self._base.param_groups.append(added)
        before = self._rates.references
        self._rates.group_added()
        if self.rule.per_group:
            self._early.add_scale()
        else:  # the rates of the other groups stay
            by = self._rates.references[0] / before[0]
            self._early.scale_by(by)
        added = self._base.param_groups[-1]["params"]
        if self._iterate is not None:
            self._iterate.extend(p.detach().clone() for p in added)
        if self._average is not None:
            self._average.extend(added)
        if self._guard is not None:
            self._guard.extend(added)

    def describe(self) -> str:
        """Describes the rule and its settings, for ``repr``."""
        return f"rule={self.rule!r}, horizon={self._horizon}, average={self._averages}"

    # Resuming.

    def hand_over(
        self, probe: Any, horizon: int | None, convert: Callable[[Any], Any] | None
    ) -> None:
        """Takes the probe that was to come, and the number of steps; a checkpoint that was loaded before is loaded now.

        Args:
            probe: see ``MetaCurvatureLR``.
            horizon: the same, already checked; None to leave it as it is.
            convert: makes of a batch what the training loop makes of it.
        """
        self._probes.take(probe, convert)
        if horizon is not None:
            self._horizon = horizon
            self._plan = self.rule.plan(horizon=self._horizon, average=self._averages)
        if self._to_load is not None:
            try:
                self._to_load()  # which goes on with the probe from where the checkpoint was
            except BaseException:
                self._probes.go_to(0, seed=self.seed)
                self._probes.take(LATER)  # so that another can be handed over
                raise
        self._to_load = self._state_to_load = None

    @property
    def is_to_come(self) -> bool:
        """True while the probe has still to be handed over."""
        return self._probes.is_to_come

    def own_state(self) -> dict[str, Any]:
        """Returns numbers, strings and tensors, for a state dict."""
        if self._state_to_load is not None:
            return self._state_to_load
        return {
            "version": VERSION,
            "rule": DirectionalRule.name,
            "seed": self.seed,
            "steps": self._steps,
            "started": self._started,
            "began": self._began,
            "early_is_over": self._early_is_over,
            "warm_up": list(astuple(self._warm_up)),
            "settling": None if self._settling is None else list(astuple(self._settling)),
            "skipped": self.skipped_readings,
            "first_lrs": self._rates.state(),
            "early": self._early.state(),
            "probes": self._probes.drawn,
            "entries": sorted(self._training.entries),
            "first_losses": [] if self._judge is None else list(self._judge.first),
            "raced": self._raced,
            "to_race": list(self._to_race),
            "races": self._races,
            "race": None if self._race is None else self._race.state(),
            "guard": Guard.state_before(self._training, had_state=self._had_state)
            if self._guard is None
            else self._guard.state(),
            "average": None if self._average is None else self._average.state(),
            "went_on_from_average": self._went_on_from_average,
            "iterate": self._iterate_for_state(),
        }

    def _iterate_for_state(self) -> OfParameters | None:
        """Returns the iterate where there is an average, which the model may be saved with in its place."""
        if self._average is None:
            return None
        return OfParameters(self._training.parameters() if self._iterate is None else self._iterate)

    def _replace_average_by(self, iterate: Sequence[Tensor]) -> None:
        """Puts the iterate into the parameters where these are the average, with which the model was saved."""
        assert self._average is not None
        found = self._average.swap_in()
        is_average = all(map(torch.equal, locals_of(found), locals_of(self._training.parameters())))
        copy_all(self._training.parameters(), iterate if is_average else found)
        reshard(self._model.model)

    def _begin_afresh(self) -> None:
        """Starts anew with the groups of a bare base's checkpoint, which has just been loaded."""
        self._to_load = self._state_to_load = None
        self._rates = GroupRates(self._base, self.rule.per_group)
        self._reset()

    def checked_own_state(self, state: Any, missing: Sequence[str]) -> Callable[[], None]:
        """Checks ``state`` (None: a checkpoint of the bare base) and returns a function that loads it.

        Args:
            state: what ``own_state`` returned.
            missing: the names of tensors that it lacks.
        """
        if state is None:
            return self._begin_afresh
        check_form(state, self.own_state().keys())
        if missing:
            buffers = self._training.copied_buffers()
            state = without_missing(state, missing, self._all_parameters(), buffers)
        check_numbers(
            state,
            groups=len(self._base.param_groups),
            scales=len(self._rates.scales),
            averages=self._averages,
        )
        if self._averages:
            average = self._average or IterateAverage(self._all_parameters())
            average.check(state["average"], f"{NAME}['average']")
        self._early.check(state["early"], f"{NAME}['early']", started=state["started"])
        if state["first_losses"]:
            Guard.check(self._training, state["guard"], f"{NAME}['guard']")
        if state["race"] is not None:
            Race.loaded(self._training, _no_verdict, _no_verdict, state["race"], f"{NAME}['race']")

        iterate = state["iterate"]
        if iterate is not None:
            iterate = like(self._training.parameters(), iterate, f"{NAME}['iterate']")

        def load() -> None:
            self._reset()
            self._is_evaluating, self._iterate = False, None
            self.seed = state["seed"]
            self._rates.load(state["first_lrs"])
            self._early.load(state["early"])
            self._training.entries = frozenset(state["entries"])
            self._probes.go_to(0, seed=self.seed)
            if state["first_losses"]:
                self._begin_to_judge(state["first_losses"])
            self._probes.go_to(state["probes"], seed=self.seed)
            self._steps, self._skipped = state["steps"], state["skipped"]
            self._began = state["began"]
            self._early_is_over = state["early_is_over"]
            self._warm_up, settling = WarmUp(*state["warm_up"]), state["settling"]
            self._settling = None if settling is None else Settling(*settling)
            self._started = state["started"]
            self._went_on_from_average = state["went_on_from_average"]
            if self._average is not None:
                self._average.load(state["average"])
                if iterate is not None and not self._counts_itself:
                    self._replace_average_by(iterate)
            if self._guard is not None:
                self._guard.load(state["guard"])
            self._raced, self._to_race = state["raced"], list(state["to_race"])
            self._races = state["races"]
            if state["race"] is not None:
                assert self._judge is not None
                self._race = Race.loaded(
                    self._training,
                    self._judge.verdict,
                    self._judge.finds_alive,
                    state["race"],
                    f"{NAME}['race']",
                )
            if self._started:
                self._effective.of_step(self._scale_rates())  # shows them

        def load_when_there_is_a_probe() -> None:
            self._to_load, self._state_to_load = load, state

        return load_when_there_is_a_probe if self.is_to_come else load


def _no_verdict() -> NoReturn:
    raise AssertionError("a race that is only checked judges nothing")


def _has_plain_momentum(base: Optimizer) -> bool:
    """Tells whether a step grows with the gradient and, by momentum, with its past: SGD's does, not RMSprop's or Muon's."""
    return isinstance(base, SGD) and any(group["momentum"] > 0 for group in base.param_groups)

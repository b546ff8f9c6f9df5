"""Runs the directional rule: an early rate, a race where that says little, and a rate that settles and is held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch.optim import RAdam

from metacurv._warnings import warn_user
from metacurv.optim.base_step import step_base_at
from metacurv.optim.directional.checked_state import (
    NAME,
    VERSION,
    check_form,
    check_numbers,
    without_missing,
)
from metacurv.optim.directional.copies import like
from metacurv.optim.directional.first_step import FirstStep
from metacurv.optim.directional.group_rates import GroupRates
from metacurv.optim.directional.guard import Guard
from metacurv.optim.directional.iterate_average import IterateAverage
from metacurv.optim.directional.line_reading import LineReading, read_line
from metacurv.optim.directional.phases import Phases
from metacurv.optim.directional.probe_sources import LATER
from metacurv.optim.directional.race import Race
from metacurv.optim.directional.rule import DirectionalRule
from metacurv.optim.directional.stage import Stage
from metacurv.optim.directional.step_line import StepLine

_RADAM_STEPS = 5  # are not normalised (Liu et al. 2020: rho_t <= 5, for beta2 up to 0.9999)
_READ_EVERY = 2  # early steps


class DirectionalControl(Phases):
    """Measures, steps and resumes for ``DirectionalLR``; ``Phases`` describes the arguments."""

    # Stepping.

    def step(self) -> None:
        """Takes one step of the base at the rule's rate, and measures what is to be measured after it."""
        self.shown.check_for_step()
        before, horizon = self._stage.steps, self._plan.horizon
        if horizon is not None and before >= horizon and not self._has_warned:
            self._has_warned = True
            warn_user(
                f"horizon={horizon} steps have been taken, and the rate is that of the last one from now on; wrap with a "
                "larger horizon to train for longer",
                RuntimeWarning,
            )
        if self._model.ranks.count > 1:
            self._model.ranks.same = self._same_on_all_ranks()
        try:
            if self._stage.started:
                self._later_step()
            else:
                self._first_step()
        finally:
            if self._stage.steps > before:  # also where a reading raises
                self._after_step()
                self.history.report()

    def _first_step(self) -> None:
        moving = self._rates.moving(self._rates.first_shares())
        if not any(moving):
            self._base.step()
            self._count_step()
            return
        step, early = self._stage.steps, self._early
        # The model may have been moved, or its dtype changed, since it was wrapped.
        if step == 0:
            self._begin_average()
        drawn = self._probes.drawn
        try:
            if self._judge is None:
                self._begin_to_judge()
            is_first = not any(early.lr)
            first = FirstStep(self._base, self._rates, moving, self._draw)
            reading = first.take(early, self._factor())
        except BaseException:
            self._probes.go_to(drawn, seed=self.seed)
            if drawn == 0:
                self._judge = self._guard = None
            raise
        self._training.entries = first.changed_entries
        if reading is None:
            self._count_step()
            return
        if is_first and self._guard is not None:
            self._guard.base = first.before
        # RAdam's first steps are not normalised, the later ones are: each of them begins anew.
        self._stage.started = not isinstance(self._base, RAdam) or step >= _RADAM_STEPS
        self._stage.began = step
        self._rates.of_step(self._scale_rates())  # shows them
        self._count_step()
        self._record_reading(step, reading, early.lr, accepted=True)

    def _later_step(self) -> None:
        stage, rates = self._stage, self._rates.of_step(self._scale_rates())
        step, line = stage.steps, None
        if not stage.early_is_over and (step - stage.began) % _READ_EVERY == 0:
            moving = self._rates.moving(rates)
            if any(moving):
                batch = self._draw()  # errors of the user's code arise before the step
                dtypes = self._model.ranks.together(batch.computed_in, self._device)
                line = StepLine(moving, dtypes)
        step_base_at(self._base, rates)
        if line is not None:
            line.stepped(self._rates.keep(rates), self._rates.largest(rates))
        self._count_step()  # also where measuring it fails
        if line is None:
            return
        lr = list(self._early.lr)
        weights = torch.tensor(lr, dtype=torch.float64, device=self._device)
        try:
            reading = read_line(line, batch, weights)
        finally:
            line.go_after()
        accepted = self._early.take(reading.slope.tolist(), reading.curvature.tolist())
        self._record_reading(step, reading, lr, accepted=accepted)

    def _record_reading(
        self, step: int, reading: LineReading, measured_at: Sequence[float], *, accepted: bool
    ) -> None:
        self._record(
            "reading",
            float(reading.loss),
            step=step,
            slope=reading.slope.tolist(),
            curvature=reading.curvature.tolist(),
            measured_at=measured_at,
            accepted=accepted,
        )

    def _same_on_all_ranks(self) -> dict[str, float]:
        """Returns what all ranks must hold, by name: else they would read at different steps, or train at different rates."""
        rule, stage = self.rule, self._stage
        rates = self.effective_lrs if stage.started else self._rates.shares()
        return {
            "horizon": float(self._plan.horizon or -1),
            "average": float(self._averages),
            "race": float(-1 if rule.race == "auto" else rule.race),
            "stop_early": float(rule.stop_early),
            "the number of steps": float(stage.steps),
            **{f"the learning rate of group {g}": float(rate) for g, rate in enumerate(rates)},
        }

    def group_added(self) -> None:
        """Takes in the parameter group that was just added to the base."""
        groups = self._base.param_groups
        if self._race is not None:
            added = groups.pop()  # copies of the race are without it
            try:
                self._end_race(self._race.settle(), more=False)
            finally:
                groups.append(added)
        before = self._rates.references[0]
        self._rates.group_added()
        if self.rule.per_group:
            self._early.add_scale()
        else:  # the rates of the other groups stay
            self._early.scale_by(self._rates.references[0] / before)
        parameters = groups[-1]["params"]
        for part in (self.shown, self._training.average, self._guard):
            if part is not None:
                part.extend(parameters)

    # Resuming.

    @property
    def is_to_come(self) -> bool:
        """True while the probe has still to be handed over."""
        return self._probes.is_to_come

    def hand_over(
        self, probe: Any, horizon: int | None, convert: Callable[[Any], Any] | None
    ) -> None:
        """Takes the probe that was to come; a checkpoint that was loaded before is loaded now.

        The arguments are those of ``DirectionalLR.hand_over``, with ``horizon`` checked.
        """
        self._probes.take(probe, convert)
        if horizon is not None:
            self._plan = self.rule.plan(horizon=horizon, average=self._averages)
        if self._to_load is not None:
            try:
                self._to_load[0]()  # which goes on with the probe from where the checkpoint was
            except BaseException:
                self._probes.go_to(0, seed=self.seed)
                self._probes.take(LATER)  # so that another can be handed over
                raise
        self._to_load = None

    def own_state(self) -> dict[str, Any]:
        """Returns numbers, strings and tensors, for a state dict."""
        if self._to_load is not None:
            return self._to_load[1]
        training, judge, guard, race = self._training, self._judge, self._guard, self._race
        return {
            "version": VERSION,
            "rule": DirectionalRule.name,
            "seed": self.seed,
            **self._stage.state(),
            "skipped": self.skipped_readings,
            "first_lrs": self._rates.state(),
            "early": self._early.state(),
            "probes": self._probes.drawn,
            "entries": sorted(training.entries),
            "first_losses": [] if judge is None else list(judge.first),
            "race": None if race is None else race.state(),
            "guard": Guard.state_before(training, had_state=self._had_state)
            if guard is None
            else guard.state(),
            "average": None if training.average is None else training.average.state(),
            "iterate": self.shown.state(),
        }

    def checked_own_state(self, state: Any, missing: Sequence[str]) -> Callable[[], None]:
        """Checks ``state`` (None: a checkpoint of the bare base) and returns a function that loads it.

        Args:
            state: what ``own_state`` returned.
            missing: the names of tensors that it lacks.
        """
        if state is None:
            return self._begin_afresh
        training = self._training
        check_form(state, self.own_state().keys())
        if missing:
            buffers = training.copied_buffers()
            state = without_missing(state, missing, self._all_parameters(), buffers)
        check_numbers(state, groups=len(self._base.param_groups), averages=self._averages)
        stage = Stage.loaded(state, len(self._rates.scales))
        if self._averages:
            average = training.average or IterateAverage(self._all_parameters())
            average.check(state["average"], f"{NAME}['average']")
        self._early.check(state["early"], f"{NAME}['early']", started=stage.started)
        if state["first_losses"]:
            Guard.check(training, state["guard"], f"{NAME}['guard']")
        if state["race"] is not None:
            Race.loaded(training, _no_verdict, _no_verdict, state["race"], f"{NAME}['race']")
        iterate = state["iterate"]
        if iterate is not None:
            iterate = like(training.parameters(), iterate, f"{NAME}['iterate']")

        def load() -> None:
            self._reset()
            self.seed = state["seed"]
            self._rates.load(state["first_lrs"])
            self._early.load(state["early"])
            training.entries = frozenset(state["entries"])
            self._probes.go_to(0, seed=self.seed)
            if state["first_losses"]:
                self._begin_to_judge(state["first_losses"])
            self._probes.go_to(state["probes"], seed=self.seed)
            self._stage, self._skipped = stage, state["skipped"]
            if training.average is not None:
                training.average.load(state["average"])
            self.shown.load(iterate)
            if self._guard is not None:
                self._guard.load(state["guard"])
            if state["race"] is not None:
                judge, name = self._judge, f"{NAME}['race']"
                assert judge is not None
                race = Race.loaded(training, judge.verdict, judge.finds_alive, state["race"], name)
                self._race = race
            if stage.started:
                self._rates.of_step(self._scale_rates())  # shows them

        if not self.is_to_come:
            return load

        def load_when_there_is_a_probe() -> None:
            self._to_load = load, state

        return load_when_there_is_a_probe

    def _begin_afresh(self) -> None:
        """Starts anew with the groups of a bare base's checkpoint, which has just been loaded."""
        self._to_load = None
        self._rates = GroupRates(self._base, self.rule.per_group, self.rule.max_lr)
        self._reset()


def _no_verdict() -> NoReturn:
    raise AssertionError("a race that is only checked judges nothing")

"""The phases of a training under the directional rule, and what comes between two steps to go from one to the next."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import ASGD, SGD, Optimizer, Rprop

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.parameters import number_parameters
from metacurv.optim.directional.early_rate import MAX_LR, MIN_LR, EarlyRate
from metacurv.optim.directional.group_rates import GroupRates
from metacurv.optim.directional.guard import Guard
from metacurv.optim.directional.history import History
from metacurv.optim.directional.iterate_average import IterateAverage
from metacurv.optim.directional.judge import Judge
from metacurv.optim.directional.probe_batches import ProbeBatches
from metacurv.optim.directional.probe_model import ProbeBatch, ProbeModel
from metacurv.optim.directional.race import FACTOR, Outcome, Race
from metacurv.optim.directional.record import DirectionalRecord
from metacurv.optim.directional.rule import ASSUMED_STEPS, DirectionalRule
from metacurv.optim.directional.settling import settled
from metacurv.optim.directional.shown_parameters import ShownParameters
from metacurv.optim.directional.snapshot import Training
from metacurv.optim.directional.stage import Stage
from metacurv.optim.group_parameters import named_parameters

_LEARNED = 0.25  # part of the first loss that is lost where the first steps went far
_DECAYED = 0.95  # part of the first rate that no warm-up leaves in the finish
_HARMED = 0.02  # part of it that is gained where they went astray


class Phases:
    """Races, lets the rate settle, watches and averages, between the steps that ``DirectionalControl`` takes.

    Args:
        base: the base optimizer.
        rule: the settings.
        model: evaluates the model on probe batches.
        probes: draws them.
        history: keeps the records.
        seed: see ``DirectionalLR``, as for ``horizon`` and ``average``.
    """

    def __init__(
        self,
        base: Optimizer,
        rule: DirectionalRule,
        *,
        model: ProbeModel,
        probes: ProbeBatches,
        history: History,
        seed: int,
        horizon: int | None,
        average: bool,
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
        if horizon is not None:
            horizon = _validate.integer("horizon", horizon, low=1)
        self._base, self.rule, self.seed, self.history = base, rule, seed, history
        self._model, self._probes, self._averages = model, probes, average
        self._plan = rule.plan(horizon=horizon, average=average)
        self._training = Training(base, model.model)
        self._rates = GroupRates(base, rule.per_group, rule.max_lr)
        self.shown = ShownParameters(self._training, self._counts_itself)
        self._had_state = bool(base.state)  # as Adagrad has
        # What loads a checkpoint, and its state, while the probe is still to come.
        self._to_load: tuple[Callable[[], None], dict[str, Any]] | None = None
        self._reset()

    def _reset(self) -> None:
        """Goes back to before the first step, where there is no rate."""
        self._stage = Stage()
        self._skipped = 0
        self._model.ranks.same = {}  # until the next step
        self._has_warned = False  # of steps beyond the horizon
        most = MAX_LR if self.rule.max_lr is None else min(self.rule.max_lr, MAX_LR)
        self._early = EarlyRate(len(self._rates.scales), _has_plain_momentum(self._base), most)
        self._probes.go_to(0, seed=self.seed)
        self._begin_average()
        self._judge: Judge | None = None
        self._guard: Guard | None = None
        self._race: Race | None = None
        self.history.clear()
        for group in self._base.param_groups:
            group["lr_scale"] = math.nan  # until a step finds a rate

    def _begin_average(self) -> None:
        """Begins the average anew, with the parameters of now."""
        self._training.entries = frozenset()
        self._training.average = IterateAverage(self._all_parameters()) if self._averages else None

    def _counts_itself(self) -> bool:
        """Tells whether the iterate is the result: before the first step, and in the finish, where noise goes by itself."""
        is_first = self._stage.steps == 0
        return self._training.average is None or is_first or self._stage.went_on_from_average

    def _all_parameters(self) -> list[Tensor]:
        return [p for group in self._base.param_groups for p in group["params"]]

    @property
    def _device(self) -> torch.device:
        device: torch.device = self._all_parameters()[0].device
        return device

    # Results for the user.

    def describe(self) -> str:
        """Describes the rule and its settings, for ``repr``."""
        return f"rule={self.rule!r}, horizon={self._plan.horizon}, average={self._averages}"

    @property
    def skipped_readings(self) -> int:
        """The number of readings with a number that was not finite."""
        return sum(not record.accepted for record in self.history.records) + self._skipped

    @property
    def effective_lrs(self) -> list[float]:
        """The learning rate of every group; nan before the first step, which finds the rate."""
        if not self._stage.started:
            return [math.nan] * len(self._base.param_groups)
        return [float(rate) for rate in self._rates.of_groups(self._scale_rates())]

    # Rates.

    def _factor(self) -> float:
        """Returns the factor of warm-up and finish on the rates of the next step."""
        step = self._stage.steps
        return self._plan.factor(step) * self._stage.warm_up.factor(step)

    def _scale_rates(self) -> list[float]:
        """Returns the rate of every scale at the next step, with the factor of the horizon."""
        factor = self._factor()
        rates = [lr * factor for lr in self._early.lr]
        if self._race is not None:
            rates[self._stage.raced] *= FACTOR**self._race.exponent
        return rates

    # Probe batches.

    def _draw(self) -> ProbeBatch:
        return self._draw_to_judge()[0]

    def _draw_to_judge(self) -> tuple[ProbeBatch, Any]:
        """Draws a batch and its pair; where the probe raises an error on one rank, all raise."""
        device = self._device
        pair = self._model.ranks.together(lambda: self._probes.draw(device), device)
        return self._model.batch(pair, device), pair

    def _begin_to_judge(self, first: list[float] | None = None) -> None:
        """Draws the batches by which candidates and the guard judge; ``first`` has their first losses, from a checkpoint."""
        horizon = self._plan.horizon or ASSUMED_STEPS
        self._judge = Judge(self._training, self._draw_to_judge, horizon, first)
        self._guard = Guard(self._training, self._judge, keeps_best=self.rule.stop_early)

    # Between two steps.

    def _count_step(self) -> None:
        """Counts the iterate into the average, but for the finish: it takes its own noise out."""
        stage, average = self._stage, self._training.average
        if average is not None:
            if stage.went_on_from_average and not self._plan.is_finishing(stage.steps):
                average.restart()  # a checkpoint goes on towards a later horizon
                stage.went_on_from_average = False
            if not stage.went_on_from_average:
                average.take()
        stage.steps += 1

    def _after_step(self) -> None:
        """Goes from phase to phase, between two steps."""
        stage = self._stage
        step, is_finishing = stage.steps, self._plan.is_finishing(stage.steps)
        if self._race is not None:
            self._end_race(self._race.settle() if is_finishing else self._race.stepped())
        elif stage.started and not stage.early_is_over:
            if step >= stage.began + self._plan.early_steps:
                self._end_early_steps()  # where the user's loss raises, the next step tries again
                stage.early_is_over = True
        elif stage.started and self._plan.begins_anew(step):
            if not self._begin_races([] if self.rule.race == "auto" else self._all_scales()):
                stage.settling = self._plan.settling(step)
        elif stage.started:
            self._look_about()
        average = self._training.average
        if average is not None and not stage.went_on_from_average and is_finishing:
            average.continue_from_it()
            stage.went_on_from_average = True
            self._warn_of_scheduler()
        if step == self._plan.horizon and self._guard is not None and self._guard.end():
            self._record("went back", self._guard.loss)

    def _warn_of_scheduler(self) -> None:
        """Warns, where the finish begins, of a scheduler that has brought the rates down already."""
        left = max(float(share) for share in self._rates.largest(self._rates.shares()))
        if left < _DECAYED:
            warn_user(
                f"horizon={self._plan.horizon} brings the learning rate to zero, and a scheduler has brought it to {left:.0%} "
                "of it by now: leave the scheduler out, or the horizon",
                UserWarning,
            )

    def _end_early_steps(self) -> None:
        """Begins a race, or the training anew with the rate that was found.

        At the edge of progress, without a warm-up, the first steps do harm that lasts. A race is where they did little, and
        where they did harm it begins where they did.
        """
        stage, judge, guard = self._stage, self._judge, self._guard
        assert judge is not None
        assert guard is not None
        scales, is_auto = self._all_scales(), self.rule.race == "auto"
        if is_auto:
            scales = [s for s in scales if self._early.is_noise(s)]
        if scales:
            first = judge.first_loss(quick=True)
            progress = first - judge.loss(of_average=False, quick=True)
            if first:
                progress /= abs(first)
            if is_auto and progress > _LEARNED:
                scales = []  # slopes that fell much are no noise
            elif not progress >= -_HARMED:
                guard.begin_again()
        if self._begin_races(scales):
            return
        if not self._plan.is_finishing(stage.steps):
            guard.begin_again()
            stage.warm_up = self._plan.warm_up(stage.steps)
        stage.settling = self._plan.settling(stage.steps + stage.warm_up.steps)

    def _look_about(self) -> None:
        """Looks at the noise and lets the guard look, where it is time to; halves the rates where that goes back."""
        step, has_died, settling = self._stage.steps, False, self._stage.settling
        if settling is not None and self._training.average is not None and self._judge is not None:
            turn = settling.turn(step)
            if turn is not None and not self._plan.is_finishing(step):
                loss, noise, progress = self._judge.noise(turn)
                self._early.scale_by(settled(noise, progress, turn))
                self._record("settling", loss, noise=noise)
                has_died = not math.isfinite(loss + noise)
        if self._guard is not None and (has_died or self._plan.is_guarded(step)):
            of_average = not self._stage.went_on_from_average
            loss, went_back = self._guard.look(of_average=of_average, has_died=has_died)
            if went_back:
                self._early.scale_by(0.5)
            self._record("went back" if went_back else "guard", loss)

    # Races of the scales, one after the other.

    def _all_scales(self) -> list[int]:
        return list(range(len(self._rates.scales)))

    def _begin_races(self, scales: list[int]) -> bool:
        """Begins the races of these scales; tells whether there is one, and time for it."""
        self._stage.races = max(1, len(scales))
        return self._begin_race(scales)

    def _begin_race(self, scales: list[int]) -> bool:
        """Begins the race of the first of these scales, the others to follow; tells whether there is one, and time for it."""
        stage = self._stage
        lengths = self._plan.rounds(stage.steps, stage.races)
        if not scales or not self.rule.candidates or lengths is None or self._judge is None:
            return False
        stage.raced, *stage.to_race = scales
        highest = math.inf
        if self.rule.max_lr is not None:
            room = self.rule.max_lr / self._early.lr[stage.raced]
            highest = max(0, math.floor(math.log(room, FACTOR)))
        self._race = Race(
            self._training,
            self._judge.verdict,
            self._judge.finds_alive,
            first=self._judge.first_loss(quick=False),
            lengths=lengths,
            most_steps=self._plan.most_raced(stage.steps, stage.races),
            candidates=self.rule.candidates,
            highest=highest,
            # Later the rate is known.
            wide=stage.settling is None and self._early.is_noise(stage.raced),
        )
        return True

    def _end_race(self, outcome: Outcome | None, *, more: bool = True) -> None:
        """Takes in the outcome of the race where there is one, and begins the next scale's where ``more`` are wanted."""
        if outcome is None:
            return
        assert self._race is not None
        stage, lr = self._stage, self._early.lr
        before = lr[stage.raced]
        raced = [(before * FACTOR**c.exponent, c.loss) for c in self._race.candidates if c.losses]
        lr[stage.raced] = min(max(before * math.exp(outcome.shift), MIN_LR), MAX_LR)
        self._race = None
        more = more and not self._plan.is_finishing(stage.steps)
        if not more or not self._begin_race(stage.to_race):
            stage.settling = self._plan.settling(stage.steps)
        loss = min((loss for _, loss in raced), default=math.nan)
        self._record("race", loss, candidates=raced)

    # Reporting.

    def _record(
        self,
        event: Literal["reading", "race", "settling", "guard", "went back"],
        loss: float,
        *,
        step: int | None = None,
        slope: Sequence[float] = (),
        curvature: Sequence[float] = (),
        measured_at: Sequence[float] = (),
        candidates: Sequence[tuple[float, float]] = (),
        accepted: bool = True,
        noise: float = math.nan,
    ) -> None:
        """Adds an event to the history; see ``DirectionalRecord``.

        ``step`` is None for the number of steps taken, and ``measured_at`` has the rates at which a reading was taken.
        """
        ratio = [
            rate * d / n if n else math.nan
            for rate, d, n in zip(measured_at, curvature, slope, strict=True)
        ]
        at, lr = self._stage.steps if step is None else step, list(self._early.lr)
        self.history.add(
            DirectionalRecord(
                at, event, loss, lr, self.effective_lrs, list(slope), list(curvature), ratio,
                list(candidates), accepted, noise,
            )
        )  # fmt: skip


def _has_plain_momentum(base: Optimizer) -> bool:
    """Tells whether a step grows with the gradient and, by momentum, with its past: SGD's does, not RMSprop's or Muon's."""
    return isinstance(base, SGD) and any(group["momentum"] > 0 for group in base.param_groups)

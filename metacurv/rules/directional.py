"""The directional rule: an early rate from slope and curvature, a race of its neighbours, and the rate held after it.

1. Early rate. With u the step for a rate of 1, n = g . u on a batch that the step did not use and d = u . G u, the loss
   after a step of rate lr is L - lr n + lr^2 d / 2 to second order: at lr d / n = 2 there is no progress. During the first
   steps log lr moves towards that edge (``early_rate``). Slope and curvature along the step: Roulet et al. 2024, "Stepping on
   the edge".
2. Race. A third of that rate, the rate and three times it take turns in the training loop (``directional.race``).
3. Hold, average, finish. The rate that won is held while an average of the iterates is kept (Shamir and Zhang 2013); the
   last part goes on from the average at a rate that falls to zero.

This file holds the settings; what was tried besides is in ``docs/develop/research-log.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from metacurv import _validate

EARLY_STEPS = 20  # in which the early rate is found
ASSUMED_STEPS = 2000  # length of a training without a horizon, to begin with
_ROUNDS = (
    0.02,
    0.06,
)  # parts of the horizon that a candidate trains for in the two rounds of a race
_LEAST_ROUND = 10  # steps: a shorter second round tells nothing, and there is no race
_MOST_RACED = 0.25  # part of the horizon after which no more candidates join
_FINISH, _FROM = (
    0.4,
    0.7,
)  # part of the horizon that the finish takes, and of the rate that it begins with
_FINISH_ALONE = 0.5  # the same without an average, from the whole rate
_GUARDED = 50  # looks of the guard in a horizon
_SHORTEST = 5  # steps between two of them


@dataclass(frozen=True)
class DirectionalRule:
    """Settings of the directional rule. The defaults are meant to be left alone.

    Attributes:
        race: the number of rates that race from the early rate on: 3, or 2 (without the larger one) for less memory, or 0
            for no race. True means 3 and False 0. A race keeps a copy of parameters, optimizer state and buffers for each, and
            one of its beginning.
        max_lr: a cap on the learning rate of every parameter group, > 0, or None.
        per_group: True gives each parameter group a rate of its own, and races groups in turn; with False one rate serves
            all, and the ratios of the groups' learning rates stay.
        stop_early: True takes the training back, at the end of the horizon, to where the loss of the probe batches was least;
            for a probe of held-out data. The method ``held_out`` sets it.

    Raises:
        TypeError: a setting is of the wrong type.
        ValueError: a setting is out of range.
    """

    name: ClassVar[Literal["directional"]] = "directional"

    race: int = 3
    max_lr: float | None = None
    per_group: bool = False
    stop_early: bool = False

    def __post_init__(self) -> None:
        race = {True: 3, False: 0}[self.race] if isinstance(self.race, bool) else self.race
        if _validate.integer("race", race, low=0, high=4) == 1:
            raise ValueError("race must be 0, 2 or 3, got 1: one rate alone is no race")
        object.__setattr__(self, "race", race)
        if self.max_lr is not None:
            _validate.real("max_lr", self.max_lr, above=0)
        for name in ("per_group", "stop_early"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(
                    f"{name} must be True or False, got {_validate.describe(getattr(self, name))}"
                )

    @classmethod
    def held_out(cls, **settings: Any) -> DirectionalRule:
        """Makes the settings for a ``probe`` of held-out data, with which the training ends where the held-out loss was least.

        It minimises the held-out loss, which classifiers raise while their accuracy still grows.

        Args:
            settings: other settings, by name.

        Returns:
            The rule with these settings.

        Raises:
            TypeError: a setting is unknown or of the wrong type.
            ValueError: a setting is out of range.
        """
        return cls(**{"stop_early": True, **settings})

    def plan(self, *, horizon: int | None, average: bool) -> Plan:
        """Works out the phases of a training.

        Args:
            horizon: steps of the training, if they are known.
            average: True where iterates are averaged.

        Returns:
            The phases.
        """
        finish = _FINISH if average else _FINISH_ALONE
        length = ASSUMED_STEPS if horizon is None else horizon
        return Plan(
            early_until=min(EARLY_STEPS, max(1, length // 10)),
            finish_begins=math.inf if horizon is None else horizon * (1 - finish),
            finish_from=_FROM if average else 1.0,
            horizon=horizon,
        )


@dataclass(frozen=True)
class Plan:
    """The phases of one training. Steps are counted from 0.

    ``early_until``: the first step after the early rate is found. ``finish_begins``: inf for never. ``finish_from``: the part
    of the rate that the finish begins with.
    """

    early_until: int
    finish_begins: float
    finish_from: float
    horizon: int | None

    def rounds(self, step: int, races: int) -> tuple[int, int] | None:
        """Returns the lengths of a race's rounds from ``step`` on, in steps of one candidate; None for no race.

        A race whose second round is shorter than ten steps tells nothing.

        Args:
            step: steps taken; without a horizon the lengths grow with them.
            races: the number of races that the time is shared by.
        """
        length = max(ASSUMED_STEPS, step) if self.horizon is None else self.horizon
        short, long = (int(part * length / races) for part in _ROUNDS)
        return (max(short, 3), long) if long >= _LEAST_ROUND else None

    def most_raced(self, step: int, races: int) -> int:
        """Returns the steps after which no more candidates join a race."""
        length = max(ASSUMED_STEPS, step) if self.horizon is None else self.horizon
        return int(_MOST_RACED * length / races)

    def races_at(self, step: int) -> bool:
        """Tells whether races begin at ``step``: after the early rate, and without a horizon when the steps have doubled."""
        if step == self.early_until:
            return True
        doublings = step / ASSUMED_STEPS
        return self.horizon is None and doublings >= 1 and math.log2(doublings).is_integer()

    def is_guarded(self, step: int) -> bool:
        """Tells whether the guard looks after ``step`` steps."""
        length = max(ASSUMED_STEPS, step) if self.horizon is None else self.horizon
        return step % max(_SHORTEST, length // _GUARDED) == 0

    def is_finishing(self, step: int) -> bool:
        """Tells whether the rate of ``step`` is on its way to zero."""
        return step > self.finish_begins

    def factor(self, step: int) -> float:
        """Returns the factor on the rate at ``step``, > 0: 1, and from ``finish_begins`` on linear.

        Steps beyond the horizon get that of its last step.
        """
        if self.horizon is not None:
            step = min(step, self.horizon - 1)
        if self.horizon is None or not self.is_finishing(step):
            return 1.0
        left = (self.horizon - step) / (self.horizon - self.finish_begins)
        return self.finish_from * left

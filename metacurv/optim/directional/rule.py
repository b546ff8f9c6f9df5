"""The settings of the directional rule, and the phases that follow from them: early steps, race or warm-up, settling, finish.

``docs/concepts/rule.md`` explains the rule; what was tried besides is in ``docs/develop/research-log.md``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from metacurv import _validate
from metacurv.optim.directional.settling import LOOKS

EARLY_STEPS = 20  # in which the early rate is found
ASSUMED_STEPS = 2000  # length of a training without a horizon, to begin with
_ROUNDS = 0.02, 0.06  # parts of the horizon that a candidate trains for in the two rounds of a race
_LEAST_ROUND = 10  # steps: a shorter second round tells nothing, and there is no race
_WARM_UP = 0.1  # part of the horizon in which the rate rises to the early one
_SETTLING = 0.15  # part of the horizon after it in which the rate settles
_SETTLED_EVERY = 0.01  # part of the horizon between two looks of it
_MOST_RACED = 0.25  # part of the horizon after which no more candidates join
_FINISH = 0.4  # part of the horizon that the finish takes
_FROM = 0.7  # part of the rate that it begins with
_FINISH_ALONE = 0.5  # the same without an average, from the whole rate
_GUARDED = 20  # looks of the guard in a horizon
_SHORTEST = 5  # steps between two of them


@dataclass(frozen=True)
class DirectionalRule:
    """Settings of the directional rule. The defaults are meant to be left alone.

    Attributes:
        race: "auto" for a race of three rates where the first slopes are noise; True or 3 for one in any case, from the early
            rate on; 2 for one without the largest rate; False or 0 for none. A race keeps a copy of parameters, optimizer state
            and buffers for each rate, and one of its beginning.
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

    race: int | Literal["auto"] = "auto"
    max_lr: float | None = None
    per_group: bool = False
    stop_early: bool = False

    def __post_init__(self) -> None:
        if self.race != "auto":
            race = {True: 3, False: 0}[self.race] if isinstance(self.race, bool) else self.race
            if type(race) is not int or race not in (0, 2, 3):
                raise ValueError(
                    f"race must be 'auto', True, False, 2 or 3, got {_validate.describe(self.race)}"
                )
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

    @property
    def candidates(self) -> int:
        """The number of rates of a race; 0 for no race."""
        return 3 if self.race == "auto" else self.race

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
            early_steps=min(EARLY_STEPS, max(1, length // 10)),
            finish_begins=math.inf if horizon is None else horizon * (1 - finish),
            finish_from=_FROM if average else 1.0,
            horizon=horizon,
        )


@dataclass(frozen=True)
class WarmUp:
    """``steps`` steps from step ``first`` on, in which the rate rises in equal parts; none with 0 steps."""

    first: int
    steps: int

    def factor(self, step: int) -> float:
        """Returns the factor on the rate at ``step``, > 0."""
        return min(1.0, (step - self.first + 1) / (self.steps + 1)) if self.steps else 1.0


@dataclass(frozen=True)
class Settling:
    """``steps`` steps from step ``first`` on, in which the noise is looked at every ``every`` steps."""

    first: int
    every: int
    steps: int

    def turn(self, step: int) -> int | None:
        """Returns the number of looks before the one after ``step`` steps; None where there is none then."""
        turn, off = divmod(step - self.first, self.every)
        is_one = 0 < step - self.first <= self.steps and not off and turn <= LOOKS
        return turn - 1 if is_one else None


@dataclass(frozen=True)
class Plan:
    """The phases of one training. Steps are counted from 0.

    ``early_steps``: steps in which the early rate is found. ``finish_begins``: inf for never. ``finish_from``: the part of the
    rate that the finish begins with.
    """

    early_steps: int
    finish_begins: float
    finish_from: float
    horizon: int | None

    def rounds(self, step: int, races: int) -> tuple[int, int] | None:
        """Returns the lengths of the rounds of each of ``races`` from ``step`` on, in steps of one candidate; None for no race.

        Without a horizon the lengths grow with the steps.
        """
        length = self._length(step)
        short, long = (int(part * length / races) for part in _ROUNDS)
        return (max(short, 3), long) if long >= _LEAST_ROUND else None

    def most_raced(self, step: int, races: int) -> int:
        """Returns the steps after which no more candidates join a race."""
        return int(_MOST_RACED * self._length(step) / races)

    def begins_anew(self, step: int) -> bool:
        """Tells whether the rate is looked for anew at ``step``: without a horizon, whenever the steps have doubled."""
        doublings = step / ASSUMED_STEPS
        return self.horizon is None and doublings >= 1 and math.log2(doublings).is_integer()

    def warm_up(self, step: int) -> WarmUp:
        """Returns the warm-up that begins at ``step``."""
        return WarmUp(step, int(_WARM_UP * self._length(0)))

    def settling(self, step: int) -> Settling:
        """Returns the settling that begins at ``step``."""
        length = self._length(step)
        every = max(_SHORTEST, int(_SETTLED_EVERY * length))
        return Settling(step, every, int(_SETTLING * length))

    def is_guarded(self, step: int) -> bool:
        """Tells whether the guard looks after ``step`` steps."""
        return step % max(_SHORTEST, self._length(step) // _GUARDED) == 0

    def is_finishing(self, step: int) -> bool:
        """Tells whether the rate of ``step`` is on its way to zero."""
        return step > self.finish_begins

    def factor(self, step: int) -> float:
        """Returns the factor of the finish on the rate at ``step``, > 0: 1, and from ``finish_begins`` on linear.

        Steps beyond the horizon get that of its last step.
        """
        if self.horizon is not None:
            step = min(step, self.horizon - 1)
        if self.horizon is None or not self.is_finishing(step):
            return 1.0
        left = (self.horizon - step) / (self.horizon - self.finish_begins)
        return self.finish_from * left

    def _length(self, step: int) -> int:
        """Returns the horizon; without one 2000, 4000, 8000, ..., the last of them that has been reached stands for it."""
        if self.horizon is not None:
            return self.horizon
        return ASSUMED_STEPS << max(step // ASSUMED_STEPS, 1).bit_length() - 1

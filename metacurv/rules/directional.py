"""The directional rule: the learning rate from slope and curvature of the loss along the optimizer's own step.

With u the step for a rate of 1, n = g . u on a batch that the step did not use and d = u . G u, the loss after a step of
rate lr is L - lr n + lr^2 d / 2 to second order: n / d is the best rate, and at lr d / n = 2 there is no progress. The rule
moves log lr towards lr d / n = sigma, for the first part of the training or for all of it. Slope and curvature along the
step: Roulet et al. 2024, "Stepping on the edge" (there measured on the training batch, whose slope is biased); the
controller, its constants and what was tried besides: ``docs/develop/research-log.md``.

This file holds the settings; the arithmetic is in ``directional_state``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from metacurv import _validate

ASSUMED_STEPS = 2000  # length of a training without a horizon: the search takes a part of them
_READINGS = 100  # number of readings in a horizon, were all of it measured at the shortest interval
_SHORTEST = 5  # least interval, in steps
_FINISH = 0.3  # part of the horizon that the finish takes
_FINISH_OF_AVERAGE = 0.15  # the same, where it begins from an average
_FROM_AVERAGE = 0.4  # the part of the rate that such a finish begins with
_LONGEST, _LONGEST_HELD = 4.0, 8.0  # interval, in the shortest ones


@dataclass(frozen=True)
class DirectionalRule:
    """Settings of the directional rule. The defaults are meant to be left alone; None is chosen from what else is known.

    A large rate pays only where the noise that it brings is taken out in the end, by a decay to zero (``horizon``) or by an
    average of the iterates (``average``). So with either of them the rule searches for a large rate during the first part of
    training and then holds it; with neither, it follows the curvature all the time, which anneals the rate.

    Attributes:
        sigma: the ratio lr d / n that the rule seeks, > 0: 1 is the quadratic's best single step, 2 its edge. None: 2.5 for a
            search, 2 where momentum is not normalised (SGD); 1.6 to follow.
        search: part of the horizon, in (0, 1], in which the rate moves; 1 is all the time, also without a horizon, where
            other values are parts of 2000 steps. None: 0.25, or 1 to follow.
        finish: part of the horizon, in [0, 1), over which the rate falls linearly to zero at its end. With an average the
            parameters are set to it where that begins, once, and go on from there at 0.4 of the rate. None: 0.3, or 0.15
            with an average.
        kappa: gain of one reading, in (0, 1], of log lr.
        beta: decay of the averages of n and d, in [0, 1).
        start: the first rate as a part of sigma n / d, > 0. None: 0.1, or 0.03 where momentum is not normalised.
        interval: fewest steps between readings after the first 20 steps, >= 1; there are up to 4 times as many while the rate
            is steady and 8 times as many once it is held; on a GPU with a ``capturable`` base nobody looks whether it is
            steady, and there are twice as many. None: a hundredth of the horizon but at least 5, or 20 without one.
        per_group: True gives each parameter group a rate of its own; with False one rate serves all, and the ratios of
            the groups' learning rates stay.

    Raises:
        TypeError: a setting is of the wrong type.
        ValueError: a setting is out of range.
    """

    name: ClassVar[Literal["directional"]] = "directional"

    sigma: float | None = None
    search: float | None = None
    finish: float | None = None
    kappa: float = 0.1
    beta: float = 0.97
    start: float | None = None
    interval: int | None = None
    per_group: bool = False

    def __post_init__(self) -> None:
        for name in ("sigma", "start"):
            if getattr(self, name) is not None:
                _validate.real(name, getattr(self, name), above=0)
        if self.search is not None:
            _validate.real("search", self.search, above=0, high=1)
        if self.finish is not None:
            _validate.real("finish", self.finish, low=0, below=1)
        _validate.real("kappa", self.kappa, above=0, high=1)
        _validate.real("beta", self.beta, low=0, below=1)
        if self.interval is not None:
            _validate.integer("interval", self.interval, low=1)
        if not isinstance(self.per_group, bool):
            raise TypeError(
                f"per_group must be True or False, got {_validate.describe(self.per_group)}"
            )

    @classmethod
    def held_out(cls, **settings: Any) -> DirectionalRule:
        """Makes the settings for a ``probe`` of held-out data, which end the training by themselves where that no longer gains.

        The rule measures every third step, steps by half of what the held-out slope allows, and shrinks the rate fast where
        that is negative. It minimises the held-out loss, which classifiers raise while their accuracy still grows.

        Args:
            settings: settings that replace those of ``held_out``, by name.

        Returns:
            The rule with these settings.

        Raises:
            TypeError: a setting is unknown or of the wrong type.
            ValueError: a setting is out of range.
        """
        quick = {"kappa": 0.7, "beta": 0.6, "start": 0.03, "interval": 3}
        return cls(**{"sigma": 0.5, "search": 1.0, "finish": 0.0, **quick, **settings})

    def plan(self, *, horizon: int | None, average: bool, plain_momentum: bool) -> Plan:
        """Replaces every None in the settings.

        Args:
            horizon: steps of the training, if they are known.
            average: True where iterates are averaged.
            plain_momentum: True where the base has momentum and does not normalise its step.

        Returns:
            The settings for this training.
        """
        follows = horizon is None and not average
        search = self.search if self.search is not None else (1.0 if follows else 0.25)
        sigma = self.sigma
        if sigma is None:
            sigma = 1.6 if follows else 2.0 if plain_momentum else 2.5
        interval = self.interval
        if interval is None:
            interval = 20 if horizon is None else max(_SHORTEST, horizon // _READINGS)
        length = ASSUMED_STEPS if horizon is None else horizon
        finish = self.finish
        if finish is None:
            finish = _FINISH_OF_AVERAGE if average else _FINISH
        return Plan(
            sigma=sigma,
            kappa=self.kappa,
            beta=self.beta,
            start=self.start if self.start is not None else (0.03 if plain_momentum else 0.1),
            interval=interval,
            longest=interval * (_LONGEST if search == 1 else _LONGEST_HELD),
            search_ends=math.inf if search == 1 else search * length,
            regular_until=0.0 if search == 1 else search * length,
            finish_begins=math.inf if horizon is None or finish == 0 else horizon * (1 - finish),
            finish_from=_FROM_AVERAGE if average else 1.0,
            horizon=horizon,
        )


@dataclass(frozen=True)
class Plan:
    """The settings of one training that follow from a ``DirectionalRule``. Steps are counted from 0.

    ``interval``, ``longest``: fewest and most steps between readings, the fewest up to ``regular_until``. ``search_ends``,
    ``finish_begins``: inf for never. ``finish_from``: the part of the rate that the finish begins with.
    """

    sigma: float
    kappa: float
    beta: float
    start: float
    interval: int
    longest: float
    search_ends: float
    regular_until: float
    finish_begins: float
    finish_from: float
    horizon: int | None

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

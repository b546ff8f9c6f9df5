"""The early rate: the learning rate of the first steps, from readings of slope and curvature along them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy
from typing import Any

from metacurv import _validate
from metacurv.optim.directional.checked_state import require, require_entries

MIN_LR, MAX_LR = 2.0**-60, 2.0**60
_SIGMA, _SIGMA_MOMENTUM = 2.5, 2.0  # the ratio lr d / n that is sought
_START, _START_MOMENTUM = 0.1, 0.03  # the first rate, as a part of sigma n / d
_KAPPA = 0.1  # gain of one reading
_BETA = 0.97  # largest decay of the averages of n and d
_TINY = 1e-9  # a curvature below this part of the slope counts as none
_MOST_GROWTH, _MOST_SHRINKING = 3.0, 1.0  # bounds on what a reading may ask for, in log units
_BRAKED_GROWTH = 0.5  # the bound on growth once a rate was found too large
_SURE = 2.0  # standard errors that a mean slope must have to be more than noise


class EarlyRate:
    """The rate of each of S scales, which moves towards sigma n / d by every reading of slope n and curvature d.

    Args:
        scales: S.
        plain_momentum: True where the base has momentum and does not normalise its step, as SGD.
        most: no rate is larger.
    """

    def __init__(self, scales: int, plain_momentum: bool, most: float = MAX_LR) -> None:
        self._most = most
        self._sigma = _SIGMA_MOMENTUM if plain_momentum else _SIGMA
        self._start = _START_MOMENTUM if plain_momentum else _START
        self.lr = [0.0] * scales
        self._slope, self._curvature = [0.0] * scales, [0.0] * scales
        self._braked = [False] * scales
        self._readings = 0
        self._normal_slopes: list[list[float]] = [[] for _ in range(scales)]

    def begin(self, slope: Sequence[float], curvature: Sequence[float]) -> None:
        """Sets the first rate, a part of sigma n / d.

        n and d are > 0, except that both are 0 where nothing under a scale was stepped; that scale gets the least of the other
        rates.
        """
        rates = [
            self._start * self._sigma * n / d if n or d else math.inf
            for n, d in zip(slope, curvature, strict=True)
        ]
        least = min(rates)
        self.lr = [self._within(least if math.isinf(rate) else rate) for rate in rates]

    def take(self, slope: Sequence[float], curvature: Sequence[float]) -> bool:
        """Moves the rates by one reading; tells whether its numbers are finite, without which nothing changes."""
        if not all(map(math.isfinite, (*slope, *curvature))):
            return False
        decay = min((1 + self._readings) / (10 + self._readings), _BETA)
        moved = False
        for s, (n, d) in enumerate(zip(slope, curvature, strict=True)):
            if not n and not d:
                continue  # no parameter under this scale was stepped
            moved = True
            self._slope[s] = decay * self._slope[s] + (1 - decay) * n
            self._curvature[s] = decay * self._curvature[s] + (1 - decay) * d
            self._normal_slopes[s].append(n / math.sqrt(d) if d > 0 else 0.0)
            self.lr[s] = self._within(self.lr[s] * math.exp(_KAPPA * self._asked(s)))
        self._readings += moved
        return True

    def _asked(self, s: int) -> float:
        """Returns how far log lr is below the one sought; growth is nearly free until the rate was too large once."""
        n, d = self._slope[s], self._curvature[s]
        sought = n / max(self.lr[s] * d, _TINY * n) if n > 0 else 0.0
        error = math.log(self._sigma * sought) if sought > 0 else -_MOST_SHRINKING
        error = min(max(error, -_MOST_SHRINKING), _MOST_GROWTH)
        self._braked[s] = self._braked[s] or error < 0
        return min(error, _BRAKED_GROWTH) if self._braked[s] else error

    def is_noise(self, s: int) -> bool:
        """Tells whether the slopes of a scale are no more than noise, so that the rate found from them says little.

        They are where their mean, each over the root of its curvature, is less than two standard errors above 0.
        """
        slopes = self._normal_slopes[s]
        if len(slopes) < 2:
            return False
        mean = sum(slopes) / len(slopes)
        variance = sum((x - mean) ** 2 for x in slopes) / (len(slopes) - 1)
        return mean < _SURE * math.sqrt(variance / len(slopes))

    def scale_by(self, factor: float) -> None:
        """Multiplies all rates."""
        self.lr = [self._within(lr * factor) for lr in self.lr]

    def add_scale(self) -> None:
        """Adds a scale, which begins at the least of the rates."""
        self.lr.append(min(self.lr))
        self._slope.append(0.0)
        self._curvature.append(0.0)
        self._braked.append(False)
        self._normal_slopes.append([])

    def state(self) -> dict[str, Any]:
        """Returns copies of numbers only, for a state dict."""
        return deepcopy(
            {
                "lr": self.lr,
                "slope": self._slope,
                "curvature": self._curvature,
                "braked": self._braked,
                "readings": self._readings,
                "normal_slopes": self._normal_slopes,
            }
        )

    def check(self, state: Any, name: str, *, started: bool) -> None:
        """Checks what the method ``state`` returned, called ``name`` in errors; there are rates in it once ``started``."""
        wanted = self.state()
        require_entries(state, wanted.keys(), name)
        _validate.integer(f"{name}['readings']", state["readings"], low=0)
        for key in wanted.keys() - {"readings"}:
            fits = isinstance(state[key], list) and len(state[key]) == len(self.lr)
            require(fits, f"{name}[{key!r}]", f"a list of {len(self.lr)} numbers", state[key])
        for key, kind in (("braked", bool), ("normal_slopes", list)):
            if not all(isinstance(entry, kind) for entry in state[key]):
                raise TypeError(
                    f"{name} must be what state_dict() gave, got {_validate.describe(state[key])} in it"
                )
        low, high = (MIN_LR, MAX_LR) if started else (-math.inf, math.inf)
        for lr in state["lr"]:
            _validate.real(f"{name}['lr']", lr, low=low, high=high)
        flat = {"normal_slopes": [x for slopes in state["normal_slopes"] for x in slopes]}
        for key in ("normal_slopes", "slope", "curvature"):
            for number in flat.get(key, state[key]):
                _validate.real(f"{name}[{key!r}]", number)

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what ``state`` returned, after ``check``."""
        state = deepcopy(state)
        self.lr = [float(lr) for lr in state["lr"]]
        self._slope, self._curvature = state["slope"], state["curvature"]
        self._braked, self._readings = state["braked"], state["readings"]
        self._normal_slopes = state["normal_slopes"]

    def _within(self, lr: float) -> float:
        return min(max(lr, MIN_LR), self._most)

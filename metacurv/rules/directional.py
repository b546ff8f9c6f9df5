"""The directional rule: the learning rate from slope and curvature of the loss along the optimizer's own step.

With u the step for a rate of 1, n = g . u on a batch that the step did not use and d = u . G u, the loss after a step of rate lr is
L - lr n + lr^2 d / 2 to second order: n / d is the best rate, and at lr d / n = 2 there is no progress. The rule moves log lr
towards lr d / n = sigma. Slope and curvature along the step: Roulet et al. 2024, "Stepping on the edge" (there measured on the
training batch, whose slope is biased); the controller and its constants: ``docs/learning-rate-free.md``.

Plain arithmetic on small tensors, on any device and without a host sync.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from metacurv import _validate

MIN_LR, MAX_LR = 2.0**-60, 2.0**60
_TINY = 1e-9  # of the slope: below it a curvature counts as none
_EARLY = 20  # steps measured every second time, each reading for as much as a later one
_GROWTH = 3.0  # most that one reading may ask for, in log units


@dataclass(frozen=True)
class DirectionalRule:
    """Settings of ``rule="directional"``. The defaults are meant to be left alone.

    Attributes:
        sigma: lr d / n that the rule seeks, > 0: 1 is the quadratic's best single step, 2 its edge.
        kappa: gain of one reading, in (0, 1], of log lr; for the shortest interval (longer ones count for as many).
        beta: decay of the averages of n and d, in [0, 1).
        start: the first rate as a part of sigma n / d, > 0; None takes 0.1, or 0.03 where the base has momentum without
            normalising its step (SGD).
        interval: fewest and most steps between readings. It starts at the fewest and grows while the rate is steady.
        per_group: whether each parameter group has a rate of its own; else one scale serves all, and the ratios of
            the groups' learning rates stay.
    """

    name: ClassVar[str] = "directional"

    sigma: float = 1.6
    kappa: float = 0.1
    beta: float = 0.97
    start: float | None = None
    interval: tuple[int, int] = (20, 80)
    per_group: bool = False

    def __post_init__(self) -> None:
        _positive("sigma", self.sigma)
        _positive("kappa", self.kappa, high=1.0)
        _validate.real("beta", self.beta, low=0, below=1)
        if self.start is not None:
            _positive("start", self.start)
        pair = self.interval
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"interval must be a pair (fewest, most) of steps, got {_validate.describe(pair)}"
            )
        low = _validate.integer("interval[0]", pair[0], low=1)
        object.__setattr__(
            self, "interval", (low, _validate.integer("interval[1]", pair[1], low=low))
        )
        if not isinstance(self.per_group, bool):
            raise TypeError(
                f"per_group must be True or False, got {_validate.describe(self.per_group)}"
            )

    @classmethod
    def held_out(cls, **settings: Any) -> DirectionalRule:
        """For a probe of held-out data: follows it fast enough to stop training where it no longer gains."""
        return cls(
            **{"sigma": 1.0, "kappa": 0.7, "beta": 0.6, "interval": (5, 5), **settings}
        )


class DirectionalState:
    """The rate and what it is found from. Tensors of float64 [S], S the number of scales.

    Attributes:
        lr: the rate.
        slope, curvature: moving averages of n and d.
        readings: accepted ones so far, 0-dim float64.
        change: |change of log lr| by the last reading, the largest over scales, 0-dim; inf before the first.
    """

    _FIELDS = ("lr", "slope", "curvature", "braked")

    def __init__(self, rule: DirectionalRule, scales: int, device: torch.device) -> None:
        self.rule = rule
        zeros = torch.zeros(scales, dtype=torch.float64, device=device)
        self.lr, self.slope, self.curvature, self.braked = (zeros.clone() for _ in range(4))
        self.readings = zeros.new_zeros(())
        self.change = zeros.new_full((), math.inf)

    def begin(self, slope: Tensor, curvature: Tensor, part: float) -> None:
        """The first rate: ``part`` of sigma n / d. n and d are > 0."""
        self.lr = (part * self.rule.sigma * slope / curvature).clamp(MIN_LR, MAX_LR)

    def update(self, slope: Tensor, curvature: Tensor, steps: int) -> Tensor:
        """One reading, ``steps`` after the last. Returns: 0-dim bool, whether it was accepted (all of it finite)."""
        rule, k = self.rule, self.readings
        accepted = torch.isfinite(slope).all() & torch.isfinite(curvature).all()
        share = 1.0 if steps < rule.interval[0] else steps / rule.interval[0]
        decay = torch.clamp((1 + k) / (10 + k), max=rule.beta) ** share
        self._set(accepted, "slope", torch.lerp(slope, self.slope, decay))
        self._set(accepted, "curvature", torch.lerp(curvature, self.curvature, decay))
        error = self._error()
        moved = (self.lr * torch.exp(rule.kappa * share * error)).clamp(MIN_LR, MAX_LR)
        change = (moved / self.lr).log().abs().max()
        self.change = torch.where(accepted, change, self.change)
        self._set(accepted, "lr", moved)
        self.readings = self.readings + accepted
        return accepted

    def _error(self) -> Tensor:
        """log(sigma n / (lr d)): how far the rate is below the one sought, clipped.

        Growth is free until the rate was too large for the first time, and slow from then on.
        """
        n, d = self.slope, self.lr * self.curvature
        error = torch.log(self.rule.sigma * n / torch.maximum(d, _TINY * n))
        error = torch.where(n > 0, error, -1.0).clamp(-1.0, _GROWTH)
        self.braked = torch.maximum(self.braked, (error < 0).to(torch.float64))
        return torch.where(self.braked > 0, error.clamp(max=0.3), error)

    def _set(self, accepted: Tensor, name: str, value: Tensor) -> None:
        setattr(self, name, torch.where(accepted, value, getattr(self, name)))

    def state(self) -> dict[str, Any]:
        """Numbers only, for a state dict."""
        fields: dict[str, Any] = {name: getattr(self, name).tolist() for name in self._FIELDS}
        return {**fields, "readings": float(self.readings), "change": float(self.change)}

    def checked(self, state: Any, name: str) -> DirectionalState:
        """A state like this one with the numbers of ``state``.

        Raises:
            TypeError, ValueError: ``state``, called ``name`` in the message, is something else.
        """
        wanted = {*self._FIELDS, "readings", "change"}
        if not isinstance(state, dict) or not wanted <= state.keys():
            raise ValueError(
                f"{name} must be a dict with {sorted(wanted)}, got {_validate.describe(state)}"
            )
        scales = len(self.lr)
        new = type(self)(self.rule, scales, self.lr.device)
        for field in self._FIELDS:
            values = state[field]
            if not isinstance(values, list) or len(values) != scales:
                raise ValueError(
                    f"{name}[{field!r}] must be a list of {scales} numbers, got {_validate.describe(values)}"
                )
            low = MIN_LR if field == "lr" else -math.inf
            numbers = [_validate.real(f"{name}[{field!r}]", v, low=low) for v in values]
            setattr(new, field, torch.tensor(numbers, dtype=torch.float64, device=self.lr.device))
        new.readings.fill_(_validate.real(f"{name}['readings']", state["readings"], low=0))
        change = state["change"]
        new.change.fill_(
            math.inf if change == math.inf else _validate.real(f"{name}['change']", change, low=0)
        )
        return new


def _positive(name: str, value: Any, high: float = math.inf) -> None:
    if _validate.real(name, value, low=0, high=high) == 0:
        raise ValueError(f"{name} must be > 0, got 0")

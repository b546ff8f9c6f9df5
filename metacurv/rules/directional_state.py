"""The directional rule at work: plain arithmetic on small tensors, on any device and without a host sync."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.rules.directional import Plan

MIN_LR, MAX_LR = 2.0**-60, 2.0**60
_TINY = 1e-9  # of the slope: below it a curvature counts as none
_MOST_GROWTH, _MOST_SHRINKING = 3.0, 1.0  # that a reading may ask for, in log units
_BRAKED_GROWTH = 0.5  # the same once a rate was found too large
_LOSS_DECAY = 0.7  # of the average of the probe batches' losses
_MOST_LOST = 0.25  # of the progress in the loss: more is a rate that undoes the training
_PROGRESS = 0.1  # of the first loss: before that much is gained, nothing is undone


class DirectionalState:
    """The rate and what it is found from; float64.

    Attributes:
        lr: [S], the rate of each scale.
        slope, curvature: [S], moving averages of n and d.
        braked: [S], 1 where the rate was too large once.
        loss: [3]: the first probe loss, its moving average, and the least of that.
        readings: accepted ones so far, 0-dim.
        change: |change of log lr| by the last reading, the largest over scales, 0-dim; 1 before there are two.
    """

    _SCALES = ("lr", "slope", "curvature", "braked")

    def __init__(self, plan: Plan, scales: int, device: torch.device) -> None:
        self.plan = plan
        zeros = torch.zeros(scales, dtype=torch.float64, device=device)
        self.lr, self.slope, self.curvature, self.braked = (zeros.clone() for _ in self._SCALES)
        self.loss = zeros.new_zeros(3)
        self.readings = zeros.new_zeros(())
        self.change = zeros.new_ones(())

    def begin(self, loss: Tensor, slope: Tensor, curvature: Tensor) -> None:
        """The first rate: a part of sigma n / d.

        n and d are > 0 but where both are 0, as nothing under that scale was stepped; it then gets the least of the other
        rates.
        """
        plan = self.plan
        moved = (slope != 0) | (curvature != 0)
        rate = torch.where(moved, plan.start * plan.sigma * slope / curvature, math.inf)
        self.lr = torch.where(moved, rate, rate.amin()).clamp(MIN_LR, MAX_LR)
        self.loss = loss.expand(3).clone()

    def add_scale(self) -> None:
        """One more, which begins at the least of the rates."""
        for name in self._SCALES:
            values = getattr(self, name)
            setattr(self, name, torch.cat([values, values.new_zeros(1)]))
        self.lr[-1] = self.lr[:-1].amin()

    def update(self, loss: Tensor, slope: Tensor, curvature: Tensor, *, searching: bool) -> Tensor:
        """One reading.

        While ``searching`` the rate moves towards sigma n / d; at all times it is halved where the loss has risen far back up.

        Returns:
            0-dim bool, whether all of the reading was finite. Else the slope and the curvature move nothing, and a loss that is
            not finite counts as risen.
        """
        finite = torch.isfinite(torch.cat([loss.reshape(1), slope, curvature])).all()
        moved = finite & (
            (slope != 0) | (curvature != 0)
        )  # [S]; else nothing under the scale was stepped
        before = self.lr
        if searching:
            k = self.readings
            decay = torch.clamp((1 + k) / (10 + k), max=self.plan.beta)
            self.slope = torch.where(moved, torch.lerp(slope, self.slope, decay), self.slope)
            self.curvature = torch.where(
                moved, torch.lerp(curvature, self.curvature, decay), self.curvature
            )
            sought = self.lr * torch.exp(self.plan.kappa * self._error(moved))
            self.lr = torch.where(moved, sought, self.lr)
            self.readings = k + moved.any()
        risen = self._has_risen(loss)
        self.lr = torch.where(risen, self.lr / 2, self.lr).clamp(MIN_LR, MAX_LR)
        self.braked = torch.where(risen, 1.0, self.braked)
        self.change = (self.lr / before).log().abs().max()
        return finite

    def _error(self, moved: Tensor) -> Tensor:
        """log(sigma n / (lr d)): how far the rate is below the one sought, clipped.

        Growth is nearly free until the rate was too large for the first time, and slower from then on.
        """
        n, d = self.slope, self.lr * self.curvature
        error = torch.log(self.plan.sigma * n / torch.maximum(d, _TINY * n))
        error = torch.where(n > 0, error, -_MOST_SHRINKING).clamp(-_MOST_SHRINKING, _MOST_GROWTH)
        self.braked = torch.maximum(self.braked, ((error < 0) & moved).to(torch.float64))
        return torch.where(self.braked > 0, error.clamp(max=_BRAKED_GROWTH), error)

    def _has_risen(self, loss: Tensor) -> Tensor:
        """Whether a quarter of the progress is lost, 0-dim bool; a ratio, so that the loss may have any unit."""
        first, smooth, least = self.loss.unbind()
        bound = least + _MOST_LOST * (first - least)
        risen = ~(loss <= bound) & (first - least > _PROGRESS * first.abs())
        finite = torch.isfinite(loss)
        smooth = torch.where(finite, torch.lerp(loss, smooth, _LOSS_DECAY), smooth)
        self.loss = torch.stack([first, smooth, torch.minimum(least, smooth)])
        return risen

    def state(self) -> dict[str, Any]:
        """Numbers only, for a state dict."""
        fields: dict[str, Any] = {name: getattr(self, name).tolist() for name in self._SCALES}
        return {
            **fields,
            "loss": self.loss.tolist(),
            "readings": float(self.readings),
            "change": float(self.change),
        }

    def checked(self, state: Any, name: str) -> DirectionalState:
        """A state like this one with the numbers of ``state``.

        Raises:
            TypeError, ValueError: ``state``, called ``name`` in the message, is something else.
        """
        lengths = {**dict.fromkeys(self._SCALES, len(self.lr)), "loss": 3}
        wanted = {*lengths, "readings", "change"}
        if not isinstance(state, dict) or not wanted <= state.keys():
            raise ValueError(
                f"{name} must be a dict with {sorted(wanted)}, got {_validate.describe(state)}"
            )
        new = DirectionalState(self.plan, len(self.lr), self.lr.device)
        for field, length in lengths.items():
            values = state[field]
            if not isinstance(values, list) or len(values) != length:
                raise ValueError(
                    f"{name}[{field!r}] must be a list of {length} numbers, got {_validate.describe(values)}"
                )
            numbers = [_validate.real(f"{name}[{field!r}]", v, low=-math.inf) for v in values]
            setattr(new, field, self.lr.new_tensor(numbers))
        new.readings.fill_(_validate.real(f"{name}['readings']", state["readings"], low=0))
        new.change.fill_(_validate.real(f"{name}['change']", state["change"], low=0))
        return new

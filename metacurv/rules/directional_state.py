"""The numbers of the directional rule, on any device and without a host sync; ``directional_reading`` moves them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.rules.directional import Plan
from metacurv.rules.directional_reading import MAX_LR, MIN_LR, take_in_

_FIELDS = ("lr", "slope", "curvature", "braked")  # the numbers of each scale
_LOSSES, _READINGS, _CHANGE, _ACCEPTED = slice(0, 3), 3, 4, 5  # places in the shared numbers


class DirectionalState:
    """The rate of each of S scales and the averages that it is found from; float64.

    Args:
        plan: the rule's settings.
        scales: S.
        device: the device of the numbers.
    """

    def __init__(self, plan: Plan, scales: int, device: torch.device) -> None:
        self.plan = plan
        self._scales = torch.zeros(len(_FIELDS), scales, dtype=torch.float64, device=device)
        self._shared = self._scales.new_zeros(6)
        self._shared[_CHANGE] = 1

    @property
    def lr(self) -> Tensor:
        """A copy of the rates, [S]."""
        return self._scales[0].clone()

    @lr.setter
    def lr(self, value: Tensor) -> None:
        self._scales[0] = value

    @property
    def change(self) -> Tensor:
        """A copy of the largest |change of log lr| over scales by the last reading, 0-dim; 1 before there are two readings."""
        return self._shared[_CHANGE].clone()

    @property
    def accepted(self) -> Tensor:
        """A copy of 1 where all of the last reading was finite, else 0; 0-dim."""
        return self._shared[_ACCEPTED].clone()

    def begin(self, loss: Tensor, slope: Tensor, curvature: Tensor) -> None:
        """Sets the first rate, a part of sigma n / d.

        n and d are > 0, except that both are 0 where nothing under a scale was stepped; that scale gets the least of the other
        rates.
        """
        plan = self.plan
        moved = (slope != 0) | (curvature != 0)
        rate = torch.where(moved, plan.start * plan.sigma * slope / curvature, math.inf)
        self.lr = torch.where(moved, rate, rate.amin()).clamp(MIN_LR, MAX_LR)
        self._shared[_LOSSES] = loss
        self._shared[_ACCEPTED] = 1

    def add_scale(self) -> None:
        """Adds a scale, which begins at the least of the rates."""
        new = self._scales.new_zeros(len(_FIELDS), 1)
        new[0] = self._scales[0].amin()
        self._scales = torch.cat([self._scales, new], dim=1)

    def update(self, reading: Tensor, *, searching: bool) -> None:
        """Takes in a reading [1 + 2 S]: a loss, slopes and curvatures."""
        plan = self.plan
        take_in_(
            self._scales,
            self._shared,
            reading,
            sigma=plan.sigma,
            kappa=plan.kappa,
            beta=plan.beta,
            searching=searching,
        )

    def state(self) -> dict[str, Any]:
        """Returns numbers only, for a state dict."""
        fields: dict[str, Any] = dict(zip(_FIELDS, self._scales.tolist(), strict=True))
        return {
            **fields,
            "loss": self._shared[_LOSSES].tolist(),
            "readings": float(self._shared[_READINGS]),
            "change": float(self._shared[_CHANGE]),
        }

    def checked(self, state: Any, name: str, *, started: bool) -> DirectionalState:
        """Returns a state like this one with the numbers of ``state``.

        Args:
            state: a dict as the method ``state`` returns it.
            name: the name of ``state`` in error messages.
            started: True where there are rates in it.

        Raises:
            TypeError: a number in ``state`` is of the wrong type.
            ValueError: ``state`` has another form, or a number out of range.
        """
        scales = self._scales.shape[1]
        lengths = {**dict.fromkeys(_FIELDS, scales), "loss": 3}
        wanted = {*lengths, "readings", "change"}
        if not isinstance(state, dict) or not wanted <= state.keys():
            raise ValueError(
                f"{name} must be a dict with {sorted(wanted)}, got {_validate.describe(state)}"
            )
        numbers = {}
        for field, length in lengths.items():
            values = state[field]
            if not isinstance(values, list) or len(values) != length:
                raise ValueError(
                    f"{name}[{field!r}] must be a list of {length} numbers, got {_validate.describe(values)}"
                )
            low, high = (MIN_LR, MAX_LR) if field == "lr" and started else (-math.inf, math.inf)
            numbers[field] = [
                _validate.real(f"{name}[{field!r}]", v, low=low, high=high) for v in values
            ]
        shared = [
            *numbers["loss"],
            _validate.real(f"{name}['readings']", state["readings"], low=0),
            _validate.real(f"{name}['change']", state["change"], low=0),
            1.0,
        ]
        new = DirectionalState(self.plan, scales, self._scales.device)
        new._scales.copy_(self._scales.new_tensor([numbers[field] for field in _FIELDS]))
        new._shared.copy_(self._scales.new_tensor(shared))
        return new

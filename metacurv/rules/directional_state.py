"""The directional rule at work: its numbers, on any device and without a host sync. ``ops.directional_lr_`` moves them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate, ops
from metacurv._directional_lr import MAX_LR, MIN_LR
from metacurv.rules.directional import Plan

_FIELDS = ("lr", "slope", "curvature", "braked")  # of a scale
_LOSSES, _READINGS, _CHANGE, _ACCEPTED = slice(0, 3), 3, 4, 5  # in what scales share


class DirectionalState:
    """The rate of each of S scales and what it is found from; float64.

    Args:
        plan: the rule's settings.
        scales: S.
        device: where the numbers are.
        backend: see ``metacurv.ops``.
    """

    def __init__(self, plan: Plan, scales: int, device: torch.device, backend: str) -> None:
        self.plan = plan
        self._backend = backend
        self._scales = torch.zeros(len(_FIELDS), scales, dtype=torch.float64, device=device)
        self._shared = self._scales.new_zeros(6)
        self._shared[_CHANGE] = 1

    @property
    def lr(self) -> Tensor:
        """[S], a copy."""
        return self._scales[0].clone()

    @lr.setter
    def lr(self, value: Tensor) -> None:
        self._scales[0] = value

    @property
    def change(self) -> Tensor:
        """|change of log lr| by the last reading, the largest over scales, 0-dim, a copy; 1 before there are two."""
        return self._shared[_CHANGE].clone()

    @property
    def accepted(self) -> Tensor:
        """Whether all of the last reading was finite, 0-dim, a copy: 1 or 0."""
        return self._shared[_ACCEPTED].clone()

    def begin(self, loss: Tensor, slope: Tensor, curvature: Tensor) -> None:
        """The first rate: a part of sigma n / d.

        n and d are > 0 but where both are 0, as nothing under that scale was stepped; it then gets the least of the other
        rates.
        """
        plan = self.plan
        moved = (slope != 0) | (curvature != 0)
        rate = torch.where(moved, plan.start * plan.sigma * slope / curvature, math.inf)
        self.lr = torch.where(moved, rate, rate.amin()).clamp(MIN_LR, MAX_LR)
        self._shared[_LOSSES] = loss
        self._shared[_ACCEPTED] = 1

    def add_scale(self) -> None:
        """One more, which begins at the least of the rates."""
        new = self._scales.new_zeros(len(_FIELDS), 1)
        new[0] = self._scales[0].amin()
        self._scales = torch.cat([self._scales, new], dim=1)

    def update(self, reading: Tensor, *, searching: bool) -> None:
        """Takes in a reading [1 + 2 S]: a loss, slopes and curvatures."""
        plan, run = self.plan, ops.implementation(self._backend, reading.device)
        run.directional_lr_(
            self._scales, self._shared, reading, plan.sigma, plan.kappa, plan.beta, searching
        )

    def state(self) -> dict[str, Any]:
        """Numbers only, for a state dict."""
        fields: dict[str, Any] = dict(zip(_FIELDS, self._scales.tolist(), strict=True))
        return {
            **fields,
            "loss": self._shared[_LOSSES].tolist(),
            "readings": float(self._shared[_READINGS]),
            "change": float(self._shared[_CHANGE]),
        }

    def checked(self, state: Any, name: str, *, started: bool) -> DirectionalState:
        """A state like this one with the numbers of ``state``.

        Args:
            state: what ``state`` gave.
            name: for messages.
            started: whether there are rates in it.

        Raises:
            TypeError, ValueError: ``state``, called ``name`` in the message, is something else.
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
        new = DirectionalState(self.plan, scales, self._scales.device, self._backend)
        new._scales.copy_(self._scales.new_tensor([numbers[field] for field in _FIELDS]))
        new._shared.copy_(self._scales.new_tensor(shared))
        return new

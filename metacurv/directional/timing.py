"""The steps at which the directional rule measures: many at first, then fewer, and fewest while the rate is steady."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate

_EARLY_STEPS, _EARLY_INTERVAL = 20, 2
_STEADY, _MOVING = 0.03, 0.06  # |change of log lr| by a reading
_LONGER, _SHORTER = 1.25, 1.5


class MeasuringTimes:
    """Tells at which steps, counted from 0, the rule takes a reading.

    Args:
        fewest: least number of steps from one reading to the next, after the early ones.
        most: greatest number of such steps.
        regular_until: the step up to which the number is ``fewest``.
    """

    def __init__(self, fewest: int, most: float, regular_until: float) -> None:
        self._fewest, self._most, self._regular_until = fewest, most, regular_until
        self._length = float(self._fewest)
        self._next = 0
        # The interval where nothing may wait for the rate's change: after regular readings the rate is held, else it moves.
        self._unseen = most if regular_until else math.sqrt(fewest * most)
        self._change: Tensor | None = None

    def is_due(self, step: int) -> bool:
        """Tells whether a reading is to be taken at ``step``."""
        return step >= self._next

    def measured(self, step: int, change: Tensor | None) -> int:
        """Notes a reading at ``step``, and returns the number of steps to the next one.

        The number follows the change of log lr at the reading before, so that nothing waits for the device.

        Args:
            step: the step that was measured.
            change: |change of log lr| by this reading, 0-dim. None where nothing may ever wait for the device: the number of
                steps is then the same however the rate moves.
        """
        before, self._change = self._last_change(), change
        early = min(_EARLY_INTERVAL, self._fewest)
        if step + early < _EARLY_STEPS:
            self._next = step + early
            return early
        if step >= self._regular_until:
            self._length = self._unseen if change is None else self._adapted(before)
        self._next = step + int(self._length)
        return int(self._length)

    def _adapted(self, change: float | None) -> float:
        if change is None:
            return self._length
        if change == 0:  # the rate is held
            return self._most
        if change < _STEADY:
            return min(self._length * _LONGER, self._most)
        return max(self._length / _SHORTER, self._fewest) if change > _MOVING else self._length

    def _last_change(self) -> float | None:
        return None if self._change is None else float(self._change)

    def state(self) -> dict[str, Any]:
        """Returns numbers only, for a state dict."""
        return {"next": self._next, "length": self._length, "change": self._last_change()}

    def checked(self, state: Any, name: str) -> MeasuringTimes:
        """Returns times with the same settings that continue from ``state``.

        Raises:
            TypeError: a number in ``state``, called ``name`` in the message, is of the wrong type.
            ValueError: ``state`` has another form, or a number out of range.
        """
        wanted = {"next", "length", "change"}
        if not isinstance(state, dict) or not wanted <= state.keys():
            raise ValueError(
                f"{name} must be a dict with {sorted(wanted)}, got {_validate.describe(state)}"
            )
        new = MeasuringTimes(self._fewest, self._most, self._regular_until)
        new._next = _validate.integer(f"{name}['next']", state["next"], low=0)
        length = _validate.real(f"{name}['length']", state["length"], low=1)
        new._length = min(max(length, self._fewest), self._most)
        if state["change"] is not None:
            change = _validate.real(f"{name}['change']", state["change"], low=0)
            new._change = torch.tensor(change, dtype=torch.float64, device="cpu")
        return new

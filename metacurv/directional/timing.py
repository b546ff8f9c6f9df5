"""When the directional rule measures: often at first, then every so many steps, more of them while the rate is steady."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from metacurv import _validate

_EARLY_STEPS, _EARLY_INTERVAL = 20, 2
_STEADY, _MOVING = 0.03, 0.06  # |change of log lr| by a reading
_LONGER, _SHORTER = 1.25, 1.5


class MeasuringTimes:
    """Tells which steps, counted from 0, are due.

    Args:
        fewest, most: steps from one reading to the next, after the early ones.
        regular_until: the step up to which they are the fewest.
    """

    def __init__(self, fewest: int, most: float, regular_until: float) -> None:
        self._fewest, self._most, self._regular_until = fewest, most, regular_until
        self._length = float(self._fewest)
        self._next = 0
        self._change = _Lagged()

    def is_due(self, step: int) -> bool:
        """Whether ``step`` is to be measured."""
        return step >= self._next

    def measured(self, step: int, change: Tensor) -> int:
        """``step`` was measured and log lr moved by ``change``, 0-dim. Returns: steps to the next reading.

        The length follows the change of the reading before, so that on CUDA nothing waits for the step just launched.
        """
        before = self._change.swap(change)
        early = min(_EARLY_INTERVAL, self._fewest)
        if step + early < _EARLY_STEPS:
            self._next = step + early
            return early
        if before is not None and step >= self._regular_until:
            if before == 0:  # the rate is held
                self._length = self._most
            elif before < _STEADY:
                self._length = min(self._length * _LONGER, self._most)
            elif before > _MOVING:
                self._length = max(self._length / _SHORTER, self._fewest)
        self._next = step + int(self._length)
        return int(self._length)

    def state(self) -> dict[str, Any]:
        """Numbers only, for a state dict."""
        return {"next": self._next, "length": self._length, "change": self._change.value()}

    def checked(self, state: Any, name: str) -> MeasuringTimes:
        """Times like these that go on from ``state``.

        Raises:
            TypeError, ValueError: ``state``, called ``name`` in the message, is something else.
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
            new._change.swap(torch.tensor(change, dtype=torch.float64, device="cpu"))
        return new


class _Lagged:
    """A number that is looked at one reading after it was made; on CUDA its copy to the host has long arrived by then."""

    def __init__(self) -> None:
        self._copy: Tensor | None = None
        self._arrived: torch.cuda.Event | None = None

    def swap(self, number: Tensor) -> float | None:
        """Takes ``number``, and returns the one before it."""
        before = self.value()
        self._copy, self._arrived = number, None
        if number.is_cuda:
            self._copy = torch.empty_like(number, device="cpu", pin_memory=True)
            self._copy.copy_(number, non_blocking=True)
            self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._arrived.record()
        return before

    def value(self) -> float | None:
        """The number last taken."""
        if self._arrived is not None:
            self._arrived.synchronize()
        return None if self._copy is None else float(self._copy)

    def __getstate__(self) -> dict[str, Any]:
        return {
            "_copy": None
            if (value := self.value()) is None
            else torch.tensor(value, dtype=torch.float64, device="cpu"),
            "_arrived": None,
        }

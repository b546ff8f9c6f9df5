"""The stage that a training has reached: the steps taken, and the phase that they have led to."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import Any

from metacurv import _validate
from metacurv.optim.directional.checked_state import NAME, require
from metacurv.optim.directional.rule import Settling, WarmUp


@dataclass
class Stage:
    """The numbers that say where a training is; as they stand here it has not begun.

    Attributes:
        steps: steps taken.
        started: True once there is a rate.
        began: the step that found the first rate.
        early_is_over: True once the early steps have ended.
        warm_up: the warm-up to the first rate.
        settling: the latest settling, if there was one.
        raced: the scale that is racing.
        to_race: the scales that race after it.
        races: the number of races, which share the time.
        went_on_from_average: True in the finish, where the parameters were set to the average.
    """

    steps: int = 0
    started: bool = False
    began: int = 0
    early_is_over: bool = False
    warm_up: WarmUp = field(default_factory=lambda: WarmUp(0, 0))
    settling: Settling | None = None
    raced: int = 0
    to_race: list[int] = field(default_factory=list)
    races: int = 1
    went_on_from_average: bool = False

    def state(self) -> dict[str, Any]:
        """Returns numbers, for a state dict."""
        return {
            **vars(self),
            "warm_up": list(astuple(self.warm_up)),
            "settling": None if self.settling is None else list(astuple(self.settling)),
            "to_race": list(self.to_race),
        }

    @classmethod
    def loaded(cls, state: dict[str, Any], scales: int) -> Stage:
        """Checks ``state``, and returns the stage that it describes, of a training with this number of scales."""
        for key in ("steps", "began", "raced", "races"):
            _validate.integer(f"{NAME}[{key!r}]", state[key], low=0)
        for key in ("started", "early_is_over", "went_on_from_average"):
            fits = isinstance(state[key], bool)
            require(fits, f"{NAME}[{key!r}]", "True or False", state[key], TypeError)
        if state["raced"] >= scales:
            raise ValueError(f"{NAME}['raced'] must be below {scales}, got {state['raced']}")
        to_race, all_scales = state["to_race"], list(range(scales))
        fits = isinstance(to_race, list) and all(scale in all_scales for scale in to_race)
        require(fits, f"{NAME}['to_race']", f"a list of some of {all_scales}", to_race)
        new = cls(**{key: state[key] for key in vars(cls())})
        new.to_race = list(to_race)
        new.warm_up = WarmUp(*_integers(state, "warm_up", 2))
        new.settling = (
            None if state["settling"] is None else Settling(*_integers(state, "settling", 3))
        )
        return new


def _integers(state: dict[str, Any], key: str, length: int) -> list[int]:
    """Returns the entry ``key``, a list of this length."""
    name, numbers = f"{NAME}[{key!r}]", state[key]
    fits = isinstance(numbers, list) and len(numbers) == length
    require(fits, name, f"a list of {length} integers", numbers)
    return [_validate.integer(name, number, low=0) for number in numbers]

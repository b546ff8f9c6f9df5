"""A running average of the iterates in which later ones count more.

Source: Shamir and Zhang 2013, "Stochastic gradient descent for non-smooth optimization" (ICML): polynomial-decay averaging,
eta = 4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.estimators.problem.numerics import wide
from metacurv.optim.carried_state import OfParameters
from metacurv.optim.directional.checked_state import require
from metacurv.optim.directional.copies import copy_all
from metacurv.processes.local_tensors import locals_of

_POWER = 4  # the last fifth of the iterates has about two thirds of the weight
_EVERY = 8  # steps between updates: neighbours hardly differ, and reading all parameters costs tiny networks 7 % of a step
_AT_FIRST = 12 * _EVERY  # steps at the start that all count


class IterateAverage:
    """Keeps a_t = a_(t-1) + 5 / (t + 5) (theta_t - a_(t-1)), t = 1, 2, ...

    After 96 steps every eighth iterate stands for the seven before it, with the weight of all eight.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters: list[Tensor] = []
        self.values: list[Tensor] = []
        self._taken = 0
        self.extend(parameters)

    def extend(self, parameters: Sequence[Tensor]) -> None:
        """Adds parameters; until now they count as constant."""
        self._parameters.extend(parameters)
        # Late updates are smaller than the spacing of half-precision numbers, so the average is in a wider dtype.
        self.values.extend(wide(p.detach()).clone() for p in parameters)

    def take(self) -> None:
        """Counts the present parameters in."""
        self._taken += 1
        t = self._taken
        if t > _AT_FIRST and t % _EVERY:
            return
        steps = range(t - _EVERY + 1, t + 1) if t > _AT_FIRST else (t,)
        stays = math.prod(i / (i + _POWER + 1) for i in steps)
        with torch.no_grad():  # as a decorator it takes 3 us more
            iterate = [wide(p) for p in locals_of(self._parameters)]
            torch._foreach_lerp_(locals_of(self.values), iterate, 1 - stays)

    def restart(self) -> None:
        """Forgets all iterates but the present one."""
        self._taken = 0
        copy_all(self.values, self._parameters)

    def continue_from_it(self) -> None:
        """Copies the average into the parameters."""
        copy_all(self._parameters, self.values)

    def swap_in(self) -> list[Tensor]:
        """Puts the average into the parameters, and returns copies of what was there."""
        held = [p.detach().clone() for p in self._parameters]
        self.continue_from_it()
        return held

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the parameters for the length of the block."""
        held = self.swap_in()
        try:
            yield
        finally:
            copy_all(self._parameters, held)

    def state(self) -> dict[str, Any]:
        """Returns tensors and numbers, for a state dict."""
        return {"taken": self._taken, "values": OfParameters(self.values)}

    def copied(self) -> dict[str, Any]:
        """Returns ``state`` with copies of the tensors, which later steps leave alone."""
        return {"taken": self._taken, "values": OfParameters(v.clone() for v in self.values)}

    def check(self, state: Any, name: str) -> None:
        """Checks that ``state``, called ``name`` in errors, belongs to an average of such parameters."""
        is_dict = isinstance(state, dict) and {"taken", "values"} <= state.keys()
        require(is_dict, name, "a dict with taken and values", state)
        _validate.integer(f"{name}['taken']", state["taken"], low=0)
        values = state["values"]
        are_tensors = isinstance(values, list) and all(isinstance(v, Tensor) for v in values)
        require(are_tensors, f"{name}['values']", "a list of tensors", values)
        own = [tuple(v.shape) for v in self.values]
        if (shapes := [tuple(v.shape) for v in values]) != own:
            raise ValueError(
                f"{name}['values'] must have the parameters' shapes {own}, got {shapes}"
            )

    def load(self, state: dict[str, Any]) -> None:
        """Takes back what ``state`` returned, after ``check``."""
        self._taken = state["taken"]
        copy_all(self.values, state["values"])

"""A copy of a base optimizer's state, for steps that are taken back and trainings that are left and taken up again."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.optim.carried_state import OfParameters


class BaseState:
    """A copy of what ``base`` keeps between steps: its ``state``, and entries of its parameter groups.

    Before the first step most optimizers have no state, so the copy costs nothing. Parameters and gradients are not part of it.

    Args:
        base: the base optimizer.
        entries: the names of the entries of groups that belong to the state; None for all of them. It must not hold what a
            scheduler or a user sets, such as lr, where other steps come in between.
    """

    def __init__(self, base: Optimizer, entries: frozenset[str] | None = None) -> None:
        self._base = base
        self._all_entries = entries is None
        self._groups = [
            {
                name: _copied(value)
                for name, value in group.items()
                if name != "params" and (entries is None or name in entries)
            }
            for group in base.param_groups
        ]
        self._state = {
            parameter: {name: _copied(value) for name, value in entries.items()}
            for parameter, entries in base.state.items()
        }

    def restore(self) -> None:
        """Puts the whole state back, tensors into the memory that they have, and drops entries that are new since the copy."""
        for group, entries in zip(self._base.param_groups, self._groups, strict=True):
            if self._all_entries:
                for name in group.keys() - entries.keys() - {"params"}:
                    del group[name]
            _put_back(group, entries)
        state = self._base.state
        for parameter in list(state):
            if parameter not in self._state:
                del state[parameter]
        for parameter, entries in self._state.items():
            now: dict[str, Any] = state[parameter]
            for name in now.keys() - entries.keys():
                del now[name]
            _put_back(now, entries)

    def clear(self) -> None:
        """Becomes the state of a base that has none."""
        self._state = {}

    def changed_entries(self) -> frozenset[str]:
        """Returns the names of those entries of groups that have changed since the copy: a step itself changed them."""
        return frozenset(
            name
            for group, entries in zip(self._base.param_groups, self._groups, strict=True)
            for name, value in entries.items()
            if not _same(group.get(name), value)
        )

    def keep_only(self, names: frozenset[str]) -> None:
        """Forgets the entries of groups with other names, which may change without a step."""
        self._all_entries = False
        self._groups = [{n: v for n, v in group.items() if n in names} for group in self._groups]

    def group_added(self) -> None:
        """Takes in a group that was added to the base, which had no state when the copy was made."""
        self._groups.append({})

    def state(self) -> dict[str, Any]:
        """Returns the entries of the groups, and those of every parameter in the order of the groups, for a state dict."""
        return {
            "groups": self._groups,
            "state": OfParameters(self._state.get(p, {}) for p in self._parameters()),
        }

    def load(self, state: Any, name: str) -> None:
        """Checks what ``state`` returned, called ``name`` in errors, and takes it back onto the devices of the parameters."""
        parameters = self._parameters()
        lengths = {"groups": len(self._base.param_groups), "state": len(parameters)}
        for key, length in lengths.items():
            entries: Any = state.get(key) if isinstance(state, dict) else None
            is_list = isinstance(entries, list) and len(entries) == length
            if not is_list or not all(isinstance(e, dict) for e in entries):
                raise ValueError(
                    f"{name} must have a list of {length} dicts under {key!r}, got {_validate.describe(entries)}"
                )
        self._groups = [dict(entries) for entries in state["groups"]]
        self._state = {
            parameter: {key: _onto(parameter, key, value) for key, value in entries.items()}
            for parameter, entries in zip(parameters, state["state"], strict=True)
            if entries
        }

    def _parameters(self) -> list[Tensor]:
        return [p for group in self._base.param_groups for p in group["params"]]


@torch.no_grad()
def _put_back(now: dict[str, Any], entries: dict[str, Any]) -> None:
    """Sets entries to their copies; tensors keep their identity, which others may hold."""
    for name, value in entries.items():
        held = now.get(name)
        if isinstance(held, Tensor) and isinstance(value, Tensor) and held.shape == value.shape:
            held.copy_(value)
        else:
            now[name] = _copied(value)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)


def _onto(parameter: Tensor, key: str, value: Any) -> Any:
    """Returns a copy of ``value`` where the optimizer keeps it: torch's ``step`` counters stay where they are."""
    if isinstance(value, Tensor) and key != "step":
        return value.to(parameter.device, copy=True)
    return _copied(value)


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.equal(a, b)
    return type(a) is type(b) and bool(a == b or (a != a and b != b))  # nan is the same as nan

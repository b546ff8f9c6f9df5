"""The form in which our own state travels in an optimizer's state dict.

Frameworks keep two entries of a state dict, "param_groups" and "state", and know what to do with what is in them: numbers
of a group, and tensors of a parameter, which they shard, gather and move. So our numbers are one string of JSON in the first
group, tensors that have a parameter's shape are entries of that parameter's state, and the few others, such as copies of
buffers, lie beside the numbers. The string is one entry whatever is in it: ``torch.distributed.checkpoint`` loads into the
entries that a new optimizer has.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from metacurv import _validate

NUMBERS = "metacurv"  # in the first group
OTHERS = "metacurv_tensors"  # beside it
_PREFIX = "metacurv_"  # of entries of a parameter's state
_STANDS_FOR, _EACH = "$at", "$each"


class OfParameters(list[Any]):
    """A list with one entry for each parameter, in the order of the groups: tensors, or dicts with tensors in them."""


def put_in(own: dict[str, Any], state_dict: dict[str, Any]) -> dict[str, Any]:
    """Returns the state dict of a base optimizer with ``own`` in it; the tensors are not copied."""
    groups = [dict(group) for group in state_dict["param_groups"]]
    state = {key: dict(entries) for key, entries in state_dict["state"].items()}
    writer = _Writer(_keys(groups), state)
    groups[0][NUMBERS] = json.dumps(writer.numbers(own, ""))
    groups[0][OTHERS] = writer.others
    return {**state_dict, "state": state, "param_groups": groups}


def taken_out(
    state_dict: dict[str, Any], parameters: Sequence[Tensor]
) -> tuple[Any, list[str], dict[str, Any]]:
    """Takes our state out again.

    Args:
        state_dict: has "state" and "param_groups". It is not changed.
        parameters: those of the optimizer; a frozen one stands for tensors that a framework has dropped with it.

    Returns:
        Our state, None where there is none; the names of the tensors that are missing from it, which are None in it; and the
            state dict of the base.

    Raises:
        ValueError: the entry is no string of JSON.
    """
    groups = [dict(group) for group in state_dict["param_groups"]]
    state_dict = dict(state_dict)
    former = state_dict.pop(NUMBERS, None)  # where releases before 0.2 kept it
    numbers = groups[0].pop(NUMBERS, None) if groups else None
    others = groups[0].pop(OTHERS, {}) if groups else {}
    state = {}
    for key, entries in state_dict["state"].items():
        is_ours = isinstance(entries, dict) and any(_is_ours(name) for name in entries)
        of_base = {n: v for n, v in entries.items() if not _is_ours(n)} if is_ours else entries
        if of_base or not is_ours:
            state[key] = of_base
    of_base = {**state_dict, "state": state, "param_groups": groups}
    if numbers is None:
        return former, [], of_base
    try:
        written = json.loads(numbers)
    except (TypeError, ValueError):
        raise ValueError(
            f"state_dict['param_groups'][0][{NUMBERS!r}] must be a string of JSON, got {_validate.describe(numbers)}"
        ) from None
    reader = _Reader(_keys(groups), state_dict["state"], others, parameters)
    own = reader.value(written)
    return own, sorted(reader.missing), of_base


def _keys(groups: Sequence[dict[str, Any]]) -> list[Any]:
    """Returns the keys of the parameters' states, in the order of the parameters."""
    return [key for group in groups for key in group["params"]]


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and name.startswith(_PREFIX)


class _Writer:
    """Puts tensors into ``state`` and ``others``, and leaves their names in their places."""

    def __init__(self, keys: list[Any], state: dict[Any, dict[str, Any]]) -> None:
        self._keys, self._state = keys, state
        self.others: dict[str, Any] = {}

    def numbers(self, value: Any, path: str, parameter: int | None = None) -> Any:
        """Returns ``value``, which stands at ``path``, without tensors."""
        if isinstance(value, OfParameters):
            if value and all(isinstance(x, Tensor) for x in value):
                for index, x in enumerate(value):
                    self._put(x, path, index)
                return {_EACH: path}
            return {_EACH: [self.numbers(x, path, i) for i, x in enumerate(value)]}
        if isinstance(value, dict):
            return {key: self.numbers(x, f"{path}_{key}", parameter) for key, x in value.items()}
        if isinstance(value, list):
            return [self.numbers(x, f"{path}_{i}", parameter) for i, x in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        self._put(value, path, parameter)  # a tensor, or an object of a base of the user's
        return {_STANDS_FOR: path}

    def _put(self, value: Any, path: str, parameter: int | None) -> None:
        if parameter is None:
            self.others[path[1:]] = value
        else:
            entries = self._state.setdefault(self._keys[parameter], {})
            entries[f"{_PREFIX}{path[1:]}"] = value


class _Reader:
    """Puts tensors back into their places."""

    def __init__(
        self,
        keys: list[Any],
        state: dict[Any, dict[str, Any]],
        others: dict[str, Any],
        parameters: Sequence[Tensor],
    ) -> None:
        self._keys, self._state, self._others, self._parameters = keys, state, others, parameters
        self.missing: set[str] = set()

    def value(self, written: Any, parameter: int | None = None) -> Any:
        """Returns what ``_Writer.numbers`` was given."""
        if isinstance(written, list):
            return [self.value(x, parameter) for x in written]
        if not isinstance(written, dict):
            return written
        if written.keys() == {_EACH}:
            each = written[_EACH]
            if isinstance(each, str):
                return OfParameters(self._get(each, i) for i in range(len(self._keys)))
            return OfParameters(self.value(x, i) for i, x in enumerate(each))
        if written.keys() == {_STANDS_FOR}:
            return self._get(written[_STANDS_FOR], parameter)
        return {key: self.value(x, parameter) for key, x in written.items()}

    def _get(self, path: str, parameter: int | None) -> Any:
        name = path[1:]
        if parameter is None:
            found = self._others.get(name)
        else:
            entries = self._state.get(self._keys[parameter], {})
            found = entries.get(f"{_PREFIX}{name}")
            own = self._parameters[parameter] if parameter < len(self._parameters) else None
            if found is None and own is not None and not own.requires_grad:
                found = own.detach()  # it has not moved
        if found is None:
            self.missing.add(name)
        return found

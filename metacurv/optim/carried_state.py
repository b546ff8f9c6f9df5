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

NUMBERS = "metacurv"  # in the first group; entries of a parameter's state begin with it and "_"
OTHERS = "metacurv_tensors"  # beside it
_STANDS_FOR, _EACH = "$at", "$each"


class OfParameters(list[Any]):
    """A list with one entry for each parameter, in the order of the groups: tensors, or dicts with tensors in them."""


def put_in(own: dict[str, Any], state_dict: dict[str, Any]) -> dict[str, Any]:
    """Returns the state dict of a base optimizer with ``own`` in it; the tensors are not copied."""
    groups = [dict(group) for group in state_dict["param_groups"]]
    state = {key: dict(entries) for key, entries in state_dict["state"].items()}
    others: dict[str, Any] = {}
    keys = _keys(groups)

    def put(value: Any, path: str, parameter: int | None) -> None:
        if parameter is None:
            others[path[1:]] = value
        else:
            state.setdefault(keys[parameter], {})[f"{NUMBERS}{path}"] = value

    def numbers(value: Any, path: str, parameter: int | None = None) -> Any:
        """Returns ``value``, which stands at ``path``, with the places of tensors instead of them."""
        if isinstance(value, OfParameters):
            if value and all(isinstance(x, Tensor) for x in value):
                for index, x in enumerate(value):
                    put(x, path, index)
                return {_EACH: path}
            return {_EACH: [numbers(x, path, i) for i, x in enumerate(value)]}
        if isinstance(value, dict):
            return {key: numbers(x, f"{path}_{key}", parameter) for key, x in value.items()}
        if isinstance(value, list):
            return [numbers(x, f"{path}_{i}", parameter) for i, x in enumerate(value)]
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        put(value, path, parameter)  # a tensor, or an object of a base of the user's
        return {_STANDS_FOR: path}

    groups[0][NUMBERS] = json.dumps(numbers(own, ""))
    groups[0][OTHERS] = others
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
    of_base = {**state_dict, "state": {}, "param_groups": groups}
    former = of_base.pop(NUMBERS, None)  # where releases before 0.2 kept it
    written = groups[0].pop(NUMBERS, None) if groups else None
    others = groups[0].pop(OTHERS, {}) if groups else {}
    for key, entries in state_dict["state"].items():
        has_ours = isinstance(entries, dict) and any(map(_is_ours, entries))
        kept = {n: v for n, v in entries.items() if not _is_ours(n)} if has_ours else entries
        if kept or not has_ours:
            of_base["state"][key] = kept
    if written is None:
        return former, [], of_base
    try:
        numbers = json.loads(written)
    except (TypeError, ValueError):
        raise ValueError(
            f"state_dict['param_groups'][0][{NUMBERS!r}] must be a string of JSON, got {_validate.describe(written)}"
        ) from None
    keys = _keys(groups)
    missing: set[str] = set()

    def get(path: str, parameter: int | None) -> Any:
        if parameter is None:
            found = others.get(path[1:])
        else:
            found = state_dict["state"].get(keys[parameter], {}).get(f"{NUMBERS}{path}")
            own = parameters[parameter] if parameter < len(parameters) else None
            if found is None and own is not None and not own.requires_grad:
                found = own.detach()  # it has not moved
        if found is None:
            missing.add(path[1:])
        return found

    def value(numbers: Any, parameter: int | None = None) -> Any:
        """Returns what ``put_in`` made ``numbers`` of."""
        if isinstance(numbers, list):
            return [value(x, parameter) for x in numbers]
        if not isinstance(numbers, dict):
            return numbers
        if numbers.keys() == {_EACH}:
            each = numbers[_EACH]
            if isinstance(each, str):
                return OfParameters(get(each, i) for i in range(len(keys)))
            return OfParameters(value(x, i) for i, x in enumerate(each))
        if numbers.keys() == {_STANDS_FOR}:
            return get(numbers[_STANDS_FOR], parameter)
        return {key: value(x, parameter) for key, x in numbers.items()}

    return value(numbers), sorted(missing), of_base


def _keys(groups: Sequence[dict[str, Any]]) -> list[Any]:
    """Returns the keys of the parameters' states, in the order of the parameters."""
    return [key for group in groups for key in group["params"]]


def _is_ours(name: Any) -> bool:
    return isinstance(name, str) and name.startswith(f"{NUMBERS}_")

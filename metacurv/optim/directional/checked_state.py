"""Checks of the numbers in a checkpoint of the directional rule, before anything is loaded from it."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from torch import Tensor

from metacurv import _validate
from metacurv.optim.directional.rule import DirectionalRule

NAME = "state_dict['param_groups'][0]['metacurv']"  # of the state in error messages
VERSION, _FORMER_VERSION = 2, 1
_COUNTERS = ("seed", "steps", "began", "skipped", "probes", "raced", "races")


def check_form(state: Any, keys: Set[str]) -> None:
    """Checks that ``state`` is a dict of this rule and version with all ``keys``.

    Raises:
        ValueError: it is not.
    """
    kind = (state.get("version"), state.get("rule")) if isinstance(state, dict) else None
    if kind == (_FORMER_VERSION, DirectionalRule.name):
        raise ValueError(
            f"{NAME} must be of this release's rule='directional', got that of an earlier one, which found its rate in another "
            "way; load the dict without its entry 'metacurv' to keep the base optimizer's state and begin the rule afresh"
        )
    if kind != (VERSION, DirectionalRule.name):
        raise ValueError(
            f"{NAME} must be a dict of version {VERSION} of rule='directional', got {_validate.describe(state)}"
        )
    missing = sorted(keys - state.keys())
    if missing:
        raise ValueError(f"{NAME} must have all its entries, lacks {missing}")


def check_numbers(state: dict[str, Any], *, groups: int, scales: int, averages: bool) -> None:
    """Checks counters, flags and rates.

    Args:
        state: has passed ``check_form``.
        groups: the number of parameter groups that it must be of.
        scales: the number of scales.
        averages: whether an average must be in it.

    Raises:
        TypeError: an entry is of the wrong type.
        ValueError: an entry is out of range, or does not fit the optimizer.
    """
    for key in _COUNTERS:
        _validate.integer(f"{NAME}[{key!r}]", state[key], low=0)
    for key, length in {"warm_up": 2, "settling": 3}.items():
        numbers = state[key]
        if key == "settling" and numbers is None:
            continue
        if not isinstance(numbers, list) or len(numbers) != length:
            raise ValueError(
                f"{NAME}[{key!r}] must be a list of {length} integers, got {_validate.describe(numbers)}"
            )
        for number in numbers:
            _validate.integer(f"{NAME}[{key!r}]", number, low=0)
    if state["raced"] >= scales:
        raise ValueError(f"{NAME}['raced'] must be below {scales}, got {state['raced']}")
    entries = state["entries"]
    if not isinstance(entries, list) or not all(isinstance(entry, str) for entry in entries):
        raise ValueError(
            f"{NAME}['entries'] must be a list of strings, got {_validate.describe(entries)}"
        )
    to_race, all_scales = state["to_race"], list(range(scales))
    if not isinstance(to_race, list) or not all(scale in all_scales for scale in to_race):
        raise ValueError(
            f"{NAME}['to_race'] must be a list of some of {all_scales}, got {_validate.describe(to_race)}"
        )
    if (state["average"] is not None) != averages:
        raise ValueError(
            f"{NAME} must be of MetaCurvatureLR(average={averages}), got one of average={not averages}"
        )
    first = state["first_lrs"]
    if not isinstance(first, list) or len(first) != groups:
        raise ValueError(
            f"{NAME}['first_lrs'] must be a list of {groups} numbers, got {_validate.describe(first)}"
        )
    for index, lr in enumerate(first):
        _validate.real(f"{NAME}['first_lrs'][{index}]", lr, low=0)
    for key in ("started", "early_is_over", "went_on_from_average"):
        if not isinstance(state[key], bool):
            raise TypeError(
                f"{NAME}[{key!r}] must be True or False, got {_validate.describe(state[key])}"
            )
    losses = state["first_losses"]
    if not isinstance(losses, list) or not all(isinstance(loss, float) for loss in losses):
        raise ValueError(
            f"{NAME}['first_losses'] must be a list of numbers, got {_validate.describe(losses)}"
        )


def without_missing(
    state: dict[str, Any],
    missing: Sequence[str],
    parameters: Sequence[Tensor],
    buffers: dict[str, Tensor],
) -> dict[str, Any]:
    """Returns ``state`` with something to go on from in the place of each part that lacks tensors.

    The average begins with the present parameters, the guard goes back to them and to the buffers, and a race begins again.

    Args:
        state: has passed ``check_form``.
        missing: names of tensors, which begin with that of their part.
        parameters: the present parameters.
        buffers: the present buffers, by name.
    """
    state = dict(state)
    parts = {name.split("_")[0] for name in missing}
    if "average" in parts:
        state["average"] = {"taken": 0, "values": list(parameters)}
    if "guard" in parts:
        nothing: dict[str, Any] = {
            "groups": [{}] * len(state["first_lrs"]),
            "state": [{} for _ in parameters],
        }
        place = {**state["guard"], "parameters": list(parameters), "buffers": buffers}
        state["guard"] = {**place, "first": place, "base": nothing}
    if "iterate" in parts:
        state["iterate"] = None
    if "race" in parts:
        state["race"], state["to_race"], state["early_is_over"] = None, [], False
    return state

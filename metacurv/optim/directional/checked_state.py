"""Checks of a checkpoint of the directional rule, before anything is loaded from it.

All of them, here and in the classes that a part of it belongs to, raise TypeError for an entry of the wrong type, and
ValueError for another form, a number out of range or tensors of other shapes.
"""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import Any

from torch import Tensor

from metacurv import _validate
from metacurv.optim.directional.rule import DirectionalRule

NAME = "state_dict['param_groups'][0]['metacurv']"  # of the state in error messages
VERSION, _FORMER_VERSION = 2, 1


def require(
    fits: bool, name: str, needs: str, value: Any, error: type[Exception] = ValueError
) -> None:
    """Raises ``error`` unless ``value``, which is called ``name``, is what it ``needs`` to be."""
    if not fits:
        raise error(f"{name} must be {needs}, got {_validate.describe(value)}")


def require_entries(state: Any, wanted: Set[str], name: str) -> None:
    """Checks that ``state``, which is called ``name``, is a dict with the entries ``wanted``."""
    fits = isinstance(state, dict) and wanted <= state.keys()
    require(fits, name, f"a dict with {sorted(wanted)}", state)


def check_form(state: Any, keys: Set[str]) -> None:
    """Checks that ``state`` is a dict of this rule and version with all ``keys``."""
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


def check_numbers(state: dict[str, Any], *, groups: int, averages: bool) -> None:
    """Checks what belongs to no other part, for a training with so many groups, with an average or without one."""
    for key in ("seed", "skipped", "probes"):
        _validate.integer(f"{NAME}[{key!r}]", state[key], low=0)
    for key, kind, needs in (
        ("entries", str, "a list of strings"),
        ("first_losses", float, "a list of numbers"),
    ):
        value = state[key]
        fits = isinstance(value, list) and all(isinstance(entry, kind) for entry in value)
        require(fits, f"{NAME}[{key!r}]", needs, value)
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

"""Releases of torch keep the groups of sharded parameters under two names."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from metacurv.processes.fully_sharded import _groups


@pytest.mark.parametrize(
    ("state", "groups"),
    [
        ({"_fsdp_param_groups": ["a", "b"]}, ["a", "b"]),
        ({"_fsdp_param_group": "a"}, ["a"]),
        ({"_fsdp_param_group": None}, []),
    ],
)
def test_groups_are_found_under_either_name(state: dict[str, Any], groups: list[str]) -> None:
    module = SimpleNamespace(_get_fsdp_state=lambda: SimpleNamespace(**state))
    assert _groups(module) == groups

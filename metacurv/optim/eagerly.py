"""Runs a function outside of what ``torch.compile`` traces; compiled functions that it calls stay compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

# One caller, once it is needed: importing the compiler takes a second.
_UNTRACED: list[Callable[[Callable[[], Any]], Any]] = []


def eagerly(function: Callable[[], Any]) -> Any:
    """Calls a function, of which no frame is compiled; where nobody has compiled anything, that is all."""
    if "torch._dynamo" not in sys.modules:
        return function()
    if not _UNTRACED:
        _UNTRACED.append(torch.compiler.disable(_call))  # type: ignore[no-untyped-call]
    return _UNTRACED[0](function)


def _call(function: Callable[[], Any]) -> Any:
    return function()

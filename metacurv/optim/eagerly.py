"""Runs a function outside of what ``torch.compile`` traces; compiled functions that it calls stay compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

_UNTRACED: list[
    Callable[..., Any]
] = []  # one, once it is needed: importing the compiler takes a second


def eagerly(function: Callable[..., Any], *arguments: Any) -> Any:
    """Returns ``function(*arguments)``, of which no frame is compiled; where nobody has compiled anything, that is all."""
    if "torch._dynamo" not in sys.modules:
        return function(*arguments)
    if not _UNTRACED:
        _UNTRACED.append(torch.compiler.disable(_call))  # type: ignore[no-untyped-call]
    return _UNTRACED[0](function, *arguments)


def _call(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)

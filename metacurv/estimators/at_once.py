"""How many cotangents go through a model together."""

from __future__ import annotations

_MOST = 64  # more gain nothing


def how_many(bytes_each: int, max_memory: int) -> int:
    """As many as fit, one at least."""
    return max(1, min(_MOST, max_memory // max(1, bytes_each)))

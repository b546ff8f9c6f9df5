"""The number of cotangents that go through a model together."""

from __future__ import annotations

_MOST = 64  # beyond this number nothing gets faster


def how_many(bytes_each: int, max_memory: int) -> int:
    """Returns how many cotangents of ``bytes_each`` fit into ``max_memory``, one at least."""
    return max(1, min(_MOST, max_memory // max(1, bytes_each)))

"""The roads that the package has and that are switched within one process, by name."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.road_activation import chain, compiled_chain, replicated_pull
from benchmarks.road_case import Cases
from benchmarks.road_hutchinson import forward_over_reverse

ROADS: dict[str, Callable[[], Cases]] = {
    road.__name__: road
    for road in (
        forward_over_reverse,
        compiled_chain,
        chain,
        replicated_pull,
    )
}

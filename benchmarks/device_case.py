"""What is measured on a device: ours, the other, and whether they come to the same."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from torch.utils.benchmark import Timer

Work = Callable[[], object]
ROUNDS = 5


@dataclass(frozen=True)
class Case:
    """Ours and the other; ``agree`` says whether they come to the same, up to the order of a sum."""

    name: str
    ours: Work
    other: Work
    agree: Callable[[], bool]
    bytes: int = 0  # that ours has to read and write


@dataclass(frozen=True)
class Outcome:
    """Medians in microseconds. ``bandwidth``: GB/s, 0 where no memory traffic is counted."""

    name: str
    ours: float
    other: float
    ratio: float
    bandwidth: float
    agree: bool


def measure(case: Case, seconds: float) -> Outcome:
    """Medians of runs that take turns, in about ``seconds``."""
    timers = [Timer("work()", globals={"work": work}) for work in (case.ours, case.other)]
    times: list[list[float]] = [[], []]
    for _ in range(ROUNDS):
        for timer, taken in zip(timers, times, strict=True):
            median = timer.blocked_autorange(min_run_time=seconds / ROUNDS / 2).median
            taken.append(median * 1e6)
    return outcome(case.name, times[0], times[1], case.agree(), case.bytes)


def outcome(
    name: str, ours: list[float], other: list[float], agree: bool, n_bytes: int = 0
) -> Outcome:
    """Of times in microseconds."""
    mine, theirs = statistics.median(ours), statistics.median(other)
    return Outcome(name, mine, theirs, theirs / mine, n_bytes / mine / 1e3, agree)

"""How many times faster one call is than another, measured so that a drifting machine cannot skew it.

The two calls take turns in one loop. Each pair of turns gives a ratio of two times taken within milliseconds of each other;
the result is the median of these ratios, with a 95 % interval from their order statistics, which assumes nothing about
how times are distributed.

The clock is the thread's own (``time.thread_time``). With one thread on an idle machine that is the time on the wall, but it
does not count what other processes on the same core took. The ratio by the wall clock is kept beside it.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter, thread_time
from typing import NamedTuple

# A turn is many calls of a fast function after one that is not timed, so that it does not measure what the other left in the
# caches.
TURN_SECONDS = 2e-3
MIN_PAIRS = 7
MAX_PAIRS = 2000

Call = Callable[[], object]


@dataclass(frozen=True)
class Paired:
    """Times of ``ours`` and ``other`` (medians, seconds a call) and how many times faster ``ours`` is.

    ``low``, ``high``: 95 % interval of ``speedup``, the median over ``pairs`` of other / ours.
    ``wall_speedup``: the same median by the wall clock.
    """

    ours_s: float
    other_s: float
    speedup: float
    low: float
    high: float
    wall_speedup: float
    pairs: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


class Turn(NamedTuple):
    """Seconds a call, by the thread's clock and by the wall clock."""

    thread: float
    wall: float


def turn(call: Call, calls: int) -> Turn:
    if calls > 1:
        call()
    wall, thread = perf_counter(), thread_time()
    for _ in range(calls):
        call()
    return Turn((thread_time() - thread) / calls, (perf_counter() - wall) / calls)


def calls_in_a_turn(call: Call) -> int:
    """Calls that fill TURN_SECONDS; warms ``call`` up as well."""
    call()
    one = min(turn(call, 1).thread for _ in range(3))
    return max(1, min(1000, round(TURN_SECONDS / max(one, 1e-9))))


def median_interval(values: list[float]) -> tuple[float, float]:
    """The 95 % interval of the median: the order statistics at n / 2 -+ 0.98 sqrt(n)."""
    ordered = sorted(values)
    n = len(ordered)
    reach = 0.98 * math.sqrt(n)
    low = max(0, math.floor(n / 2 - reach))
    high = min(n - 1, math.ceil(n / 2 + reach) - 1)
    return ordered[low], ordered[high]


def compare(ours: Call, other: Call, *, seconds: float) -> Paired:
    """Takes turns for about ``seconds``, at least MIN_PAIRS pairs; which one begins alternates.

    The garbage collector is off meanwhile.
    """
    ours_calls, other_calls = calls_in_a_turn(ours), calls_in_a_turn(other)
    pairs: list[tuple[Turn, Turn]] = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = perf_counter() + seconds
        while len(pairs) < MIN_PAIRS or (perf_counter() < end and len(pairs) < MAX_PAIRS):
            if len(pairs) % 2:
                second = turn(other, other_calls)
                first = turn(ours, ours_calls)
            else:
                first = turn(ours, ours_calls)
                second = turn(other, other_calls)
            pairs.append((first, second))
    finally:
        if collecting:
            gc.enable()
    return paired(pairs)


def paired(pairs: list[tuple[Turn, Turn]]) -> Paired:
    """Medians over pairs of turns (ours, other)."""
    ratios = [b.thread / a.thread for a, b in pairs]
    low, high = median_interval(ratios)
    return Paired(
        ours_s=statistics.median(a.thread for a, _ in pairs),
        other_s=statistics.median(b.thread for _, b in pairs),
        speedup=statistics.median(ratios),
        low=low,
        high=high,
        wall_speedup=statistics.median(b.wall / a.wall for a, b in pairs),
        pairs=len(pairs),
    )

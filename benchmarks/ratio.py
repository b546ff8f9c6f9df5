"""How many times faster one call is than another, measured so that a drifting machine cannot skew it.

The two calls take turns in one loop. Each pair of turns gives a ratio of two times taken within milliseconds of each other;
the result is the median of these ratios, with a 95 % interval from their order statistics, which assumes nothing about
how times are distributed.
"""

from __future__ import annotations

import gc
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter

# A turn is many calls of a fast function, so that one turn does not measure what the other left in the caches.
TURN_SECONDS = 2e-3
MIN_PAIRS = 7
MAX_PAIRS = 2000

Call = Callable[[], object]


@dataclass(frozen=True)
class Paired:
    """Times of ``ours`` and ``other`` (medians, seconds a call) and how many times faster ``ours`` is.

    ``low``, ``high``: 95 % interval of ``speedup``, the median over ``pairs`` of other / ours.
    """

    ours_s: float
    other_s: float
    speedup: float
    low: float
    high: float
    pairs: int

    def as_dict(self) -> dict[str, float]:
        return asdict(self)


def turn(call: Call, calls: int) -> float:
    """Seconds a call."""
    start = perf_counter()
    for _ in range(calls):
        call()
    return (perf_counter() - start) / calls


def calls_in_a_turn(call: Call) -> int:
    """Calls that fill TURN_SECONDS; warms ``call`` up as well."""
    call()
    one = min(turn(call, 1) for _ in range(3))
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
    """Takes turns for about ``seconds``, at least MIN_PAIRS pairs, who begins alternating, without garbage collection."""
    ours_calls, other_calls = calls_in_a_turn(ours), calls_in_a_turn(other)
    ours_times: list[float] = []
    other_times: list[float] = []
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = perf_counter() + seconds
        while len(ours_times) < MIN_PAIRS or (perf_counter() < end and len(ours_times) < MAX_PAIRS):
            if len(ours_times) % 2:
                other_times.append(turn(other, other_calls))
                ours_times.append(turn(ours, ours_calls))
            else:
                ours_times.append(turn(ours, ours_calls))
                other_times.append(turn(other, other_calls))
    finally:
        if collecting:
            gc.enable()
    ratios = [b / a for a, b in zip(ours_times, other_times, strict=True)]
    low, high = median_interval(ratios)
    return Paired(
        ours_s=statistics.median(ours_times),
        other_s=statistics.median(other_times),
        speedup=statistics.median(ratios),
        low=low,
        high=high,
        pairs=len(ratios),
    )

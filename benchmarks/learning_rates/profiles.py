"""Performance profiles (Dolan and More, Mathematical Programming 91, 2002): how often a method is nearly the best.

The profile of a method at x is the fraction of the tasks on which its error is at most x times that of the best method there.
At x = 1 stands how often it is the best, at the right edge how often it does not fail.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Ratios = Mapping[str, Mapping[str, float]]
"""method -> task -> log of its error over a reference that all methods of the task share."""


def factors(ratios: Ratios) -> dict[str, list[float]]:
    """Returns error over the best method's error, one number a task in rising order; this is all of a profile.

    Every method has the same tasks.
    """
    tasks = list(next(iter(ratios.values()), {}))
    best = {task: min(by_task[task] for by_task in ratios.values()) for task in tasks}
    return {
        method: sorted(math.exp(by_task[task] - best[task]) for task in tasks)
        for method, by_task in ratios.items()
    }


def within(rising: Sequence[float], x: float) -> float:
    """Returns the profile at ``x``: the fraction of ``rising`` that is at most ``x``."""
    return sum(factor <= x for factor in rising) / len(rising)

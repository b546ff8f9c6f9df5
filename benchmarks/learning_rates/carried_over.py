"""One setting for everything: for each task the point of the grid that is best on the other tasks.

That is what a user has who tunes nothing but knows what has worked elsewhere, and what rules without a rate to tune have to
beat (AlgoPerf's study, arXiv:2505.24005). It is a choice among the runs of the grid and no run of its own.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from .regret import Reading
from .summary import GRID_NAMES

Ratios = Mapping[str, Mapping[Reading, float]]
"""task -> reading -> log ratio to the oracle."""


def carried_over(ratios: Ratios) -> dict[str, Reading]:
    """Returns the point of the grid for each task: the one with the least mean log ratio over the other tasks of ``ratios``.

    Only points that all tasks have can be chosen. A single task has no others, and no choice.
    """
    if len(ratios) < 2:
        return {}
    shared = set.intersection(*(set(by_reading) for by_reading in ratios.values()))
    points = sorted(reading for reading in shared if reading[0] in GRID_NAMES)
    if not points:
        return {}
    return {
        task: min(
            points,
            key=lambda point: statistics.mean(
                by_reading[point] for other, by_reading in ratios.items() if other != task
            ),
        )
        for task in ratios
    }

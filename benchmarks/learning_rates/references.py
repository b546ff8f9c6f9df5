"""The points of the grid that all methods are compared with: they need all seeds, whatever halving has left of them.

These are the oracle of each task and the one setting carried over to it. A point that was dropped after the first seeds may
have the least error of the grid by chance, and a comparison with it would be one of other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from .carried_over import carried_over
from .plan import Run
from .regret import log_ratios, mean_errors
from .store import Store
from .summary import GRID_NAMES
from .task import Task


def missing(tasks: Iterable[Task], seeds: Sequence[int], store: Store) -> list[Run]:
    """Returns the runs that such points lack; ask again when they are done, as another point may lead then."""
    tasks = list(tasks)
    ratios = {task.name: log_ratios(mean_errors(task, store.by_method(task))) for task in tasks}
    chosen = carried_over(ratios)
    lacking = []
    for task in tasks:
        of_grid = {r: v for r, v in ratios[task.name].items() if r[0] in GRID_NAMES}
        readings = [chosen[task.name]] if task.name in chosen else []
        if of_grid:
            readings.append(min(of_grid, key=lambda reading: of_grid[reading]))
        for name in dict.fromkeys(name for name, _ in readings):
            runs = (Run(task.name, name, seed, task.steps) for seed in seeds)
            lacking += [run for run in runs if run not in store]
    return lacking

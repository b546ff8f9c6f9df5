"""The runs that a comparison takes.

The grid is searched by halving: all its points on the first seeds, and on the others only the constant rates and those
points whose last iterate or average was among the best by validation. The best of the grid is then chosen by validation over
all seeds. ``references`` adds what the comparison over tasks needs.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .grid import DEFAULT_RATE, GRID
from .task import Task
from .training import Record

SCREENING_SEEDS = 3
KEPT = 8  # points of the grid that go on, by the better of last iterate and average


@dataclass(frozen=True)
class Run:
    """One training run. ``user_lr``: the lr that the base optimizer is made with, where the method leaves that to the user."""

    task: str
    method: str
    seed: int
    steps: int
    user_lr: float = DEFAULT_RATE

    @property
    def is_plain(self) -> bool:
        """True where the user's lr is the default."""
        return self.user_lr == DEFAULT_RATE


def grid_runs(task: Task, seeds: Iterable[int], find: Callable[[Run], Record | None]) -> list[Run]:
    """The runs of the grid that are known to be needed, given those that are finished; ask again when these are."""
    seeds = list(seeds)
    screened, others = seeds[:SCREENING_SEEDS], seeds[SCREENING_SEEDS:]
    screening = [
        Run(task.name, point.name, seed, task.steps) for seed in screened for point in GRID
    ]
    if any(find(run) is None for run in screening):
        return screening
    kept = [point.name for point in GRID if point.is_constant]
    kept += [name for name in _best(task, screened, find) if name not in kept]
    return screening + [Run(task.name, name, seed, task.steps) for seed in others for name in kept]


def _best(task: Task, seeds: list[int], find: Callable[[Run], Record | None]) -> list[str]:
    def score(name: str) -> float:
        records = [find(Run(task.name, name, seed, task.steps)) for seed in seeds]
        sign = 1 if task.higher_is_better else -1
        scores: list[float] = [
            statistics.mean(
                sign * record[f"val_{which}"] for record in records if record is not None
            )
            for which in ("last", "average")
        ]
        return max(scores)

    return sorted((point.name for point in GRID), key=score, reverse=True)[:KEPT]


def method_runs(task: Task, methods: Iterable[str], seeds: Iterable[int]) -> list[Run]:
    """Every method from every seed."""
    methods = list(methods)
    return [Run(task.name, method, seed, task.steps) for seed in seeds for method in methods]

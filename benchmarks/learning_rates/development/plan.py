"""The seeds that settings may be chosen on, and the runs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..plan import Run
from ..task import Task
from .reference import REFERENCE

SEEDS = range(100, 108)
REPORTED = range(10)


def check_seeds(seeds: Iterable[int]) -> None:
    """Refuses seeds on which nothing may be chosen.

    Raises:
        ValueError: a seed is none of ``SEEDS``.
    """
    if foreign := [seed for seed in seeds if seed not in SEEDS]:
        raise ValueError(
            f"seeds must be of {SEEDS[0]} to {SEEDS[-1]}, got {', '.join(map(str, foreign))}: results are reported on "
            f"{REPORTED[0]} to {REPORTED[-1]}, and what is chosen on these proves nothing there"
        )


def runs(tasks: Sequence[Task], variants: Iterable[str], seeds: Sequence[int]) -> list[Run]:
    """Lists the reference and the variants, seed by seed, so that a call that is cut short has seen all tasks.

    Raises:
        ValueError: a seed is none of ``SEEDS``.
    """
    check_seeds(seeds)
    methods = [*REFERENCE, *variants]
    return [
        Run(task.name, method, seed, task.steps)
        for seed in seeds
        for task in tasks
        for method in methods
    ]

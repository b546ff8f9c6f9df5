"""The sensitivity to the given learning rate: a constant rate's result has a peak, the directional rule's should be a line."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from metacurv.experiment.storage import read_json, write_atomically, write_json

from . import sensitivity_figure
from .plan import Run
from .store import Store
from .task import Task
from .tasks import TASKS
from .workers import complete

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
METHODS = {"user's rate": "last", "directional": "average"}  # and the iterate that is evaluated
TASK_NAMES = ("mlp-relu", "friedman", "digits-mlp", "conv")

Results = dict[str, dict[str, dict[float, list[float]]]]  # task -> method -> lr -> a value a seed


def run(tasks: Sequence[Task], seeds: range, store: Store, jobs: int, progress: bool) -> int:
    """Trains what is missing of ``tasks`` and draws all that the store has whole. Returns: the exit status."""
    for task in tasks:
        complete(_runs(task, seeds), store, jobs, task.name, progress=progress)
    results: Results = {
        name: _results(TASKS[name], seeds, store)
        for name in TASK_NAMES
        if all(each in store for each in _runs(TASKS[name], seeds))
    }
    write_json(store.folder / "sensitivity.json", {
        task: {method: {f"{rate:g}": values for rate, values in by_lr.items()} for method, by_lr in methods.items()}
        for task, methods in results.items()
    })  # fmt: skip
    _draw(results, store.folder)
    print(f"written to {store.folder}: sensitivity.json, sensitivity.png")
    return 0


def redraw(folder: Path) -> int:
    """Draws what sensitivity.json holds. Returns: the exit status."""
    stored = read_json(folder / "sensitivity.json")
    if stored is None:
        print(f"{folder} has no sensitivity.json to draw", file=sys.stderr)
        return 1
    _draw({
        task: {method: {float(rate): values for rate, values in by_lr.items()} for method, by_lr in methods.items()}
        for task, methods in stored.items()
    }, folder)  # fmt: skip
    print(f"written to {folder}: sensitivity.png")
    return 0


def _draw(results: Results, folder: Path) -> None:
    base, ours = METHODS
    pairs = {task: (methods[base], methods[ours]) for task, methods in results.items()}
    write_atomically(folder / "sensitivity.png", sensitivity_figure.draw(pairs))


def _runs(task: Task, seeds: range) -> list[Run]:
    return [
        Run(task.name, method, seed, task.steps, rate)
        for method in METHODS
        for rate in RATES
        for seed in seeds
    ]


def _results(task: Task, seeds: range, store: Store) -> dict[str, dict[float, list[float]]]:
    return {
        method: {
            rate: [
                store.record(Run(task.name, method, seed, task.steps, rate))[f"test_{which}"]
                for seed in seeds
            ]
            for rate in RATES
        }
        for method, which in METHODS.items()
    }

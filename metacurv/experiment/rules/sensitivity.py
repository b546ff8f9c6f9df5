"""The sensitivity to the user's lr: a constant rate's result has a peak, the directional rule's should be a line."""

from __future__ import annotations

from collections.abc import Sequence

from ..storage import write_atomically, write_json
from . import figures
from .plan import Run
from .store import Store
from .tasks import TASKS, Task
from .workers import complete

RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
METHODS = {"user's rate": "last", "directional": "average"}  # and the iterate that is read
LABELS = {"user's rate": "base optimizer at that lr", "directional": "directional rule"}
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
    write_atomically(store.folder / "sensitivity.png", figures.draw_sensitivity(_labelled(results)))
    print(f"written to {store.folder}: sensitivity.json, sensitivity.png")
    return 0


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


def _labelled(results: Results) -> Results:
    return {
        task: {LABELS[method]: by_lr for method, by_lr in methods.items()}
        for task, methods in results.items()
    }

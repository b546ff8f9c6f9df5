"""The sensitivity to settings: those of the directional rule, its probes, and the loop's batch size and length."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..storage import read_json, write_atomically, write_json
from . import figures, labels
from .plan import Run
from .store import Store
from .tasks import TASKS, Task, with_batches_of
from .variants import FIELDS, PROBE_SIZES, name_of
from .workers import complete

FOLDER = "settings"  # in the run folder
TASK_NAMES = ("mlp-relu", "friedman")
OURS = "directional"
BATCH_SIZES = (16, 32, 64, 100, 200, 400)
STEPS = (250, 500, 1000, 2000, 4000, 8000)
_RATES = (1e-3, 1e-2)  # of Adam, beside the rule where the loop itself changes

Results = dict[str, dict[str, dict[str, dict[float, list[float]]]]]
"""task -> setting -> label -> value -> a result a seed."""


def run(tasks: Sequence[Task], seeds: range, store: Store, jobs: int, progress: bool) -> int:
    """Trains what is missing of ``tasks`` and draws all that the store has whole. Returns: the exit status."""
    for task in tasks:
        complete(_runs(task, seeds), store, jobs, task.name, progress=progress)
    results: Results = {
        name: _results(TASKS[name], seeds, store)
        for name in TASK_NAMES
        if all(each in store for each in _runs(TASKS[name], seeds))
    }
    _write(results, store.folder)
    return 0


def redraw(folder: Path) -> int:
    """Draws what settings.json holds, and gives it today's labels; published, it lies in the run folder itself.

    Returns:
        The exit status.
    """
    places = [place for place in (folder / FOLDER, folder) if (place / "settings.json").exists()]
    stored = read_json(places[0] / "settings.json") if places else None
    if stored is None:
        print(f"{folder} has no settings.json to draw", file=sys.stderr)
        return 1
    results: Results = {
        task: {
            setting: {
                labels.as_now(label): {float(value): found for value, found in by_value.items()}
                for label, by_value in by_label.items()
            }
            for setting, by_label in settings.items()
        }
        for task, settings in stored.items()
    }
    _write(results, places[0])
    return 0


def _write(results: Results, folder: Path) -> None:
    by_name = {
        task: {
            setting: {
                label: {f"{value:g}": found for value, found in by_value.items()}
                for label, by_value in by_label.items()
            }
            for setting, by_label in settings.items()
        }
        for task, settings in results.items()
    }
    write_json(folder / "settings.json", by_name)
    write_atomically(folder / "settings.png", figures.draw_settings(results, _defaults()))
    print(f"written to {folder}: settings.json, settings.png")


Point = Callable[[float, int], Run]  # of a value and a seed


def _sweeps(task: Task) -> dict[str, dict[str, tuple[Sequence[float], Point]]]:
    """Maps setting -> label -> values, and the run at one of them."""

    def variant(setting: str) -> Point:
        return lambda value, seed: Run(task.name, name_of(setting, value), seed, task.steps)

    def batches(method: str, lr: float) -> Point:
        return lambda size, seed: Run(
            with_batches_of(task, int(size)), method, seed, task.steps, lr
        )

    def steps(method: str, lr: float) -> Point:
        return lambda length, seed: Run(task.name, method, seed, int(length), lr)

    shown = {OURS: ("directional", _RATES[0])} | {
        labels.at_rate(task, rate): ("user's rate", rate) for rate in _RATES
    }
    found: dict[str, dict[str, tuple[Sequence[float], Point]]] = {
        field: {OURS: (values, variant(field))} for field, values in FIELDS.items()
    }
    found["probe size"] = {OURS: (PROBE_SIZES, variant("probe size"))}
    found["batch size"] = {label: (BATCH_SIZES, batches(*how)) for label, how in shown.items()}
    found["steps"] = {label: (STEPS, steps(*how)) for label, how in shown.items()}
    return found


def _runs(task: Task, seeds: range) -> list[Run]:
    return [
        point(value, seed)
        for by_label in _sweeps(task).values()
        for values, point in by_label.values()
        for value in values
        for seed in seeds
    ]


def _results(
    task: Task, seeds: range, store: Store
) -> dict[str, dict[str, dict[float, list[float]]]]:
    return {
        setting: {
            label: {
                value: [
                    store.record(point(value, seed))[
                        "test_average" if label == OURS else "test_last"
                    ]
                    for seed in seeds
                ]
                for value in values
            }
            for label, (values, point) in by_label.items()
        }
        for setting, by_label in _sweeps(task).items()
    }


def _defaults() -> dict[str, dict[str, float]]:
    """Maps task -> setting -> its value where nobody changes it."""
    return {
        task.name: {
            "sigma": 2.5,
            "kappa": 0.1,
            "interval": task.steps / 100,
            "probe size": task.batch_size,
            "batch size": task.batch_size,
            "steps": task.steps,
        }
        for task in map(TASKS.__getitem__, TASK_NAMES)
    }

"""The cost of methods: their steps and the base optimizer's, side by side through a whole training."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tqdm import tqdm  # type: ignore[import-untyped]

from metacurv.experiment.environment import changes, describe
from metacurv.experiment.storage import read_json, write_json

from .grid import DEFAULT_RATE
from .store import Store
from .task import Task
from .training import Training

ALLOWED = {"transformer": 1.03, "conv": 1.03}  # of the base's time; other tasks:
ALLOWED_SMALL = 1.06
TASK_NAMES = ("transformer", "conv", "mlp-relu", "mlp-batch32", "digits-mlp")
_STRETCH = 20  # steps of one, then of the other, so that a machine that drifts slows both alike
_REPEATS = 5
METHOD, BASE = "directional", "user's rate"
# What the directional rule does until which part of the steps; the early steps are the first stretch.
PARTS = {"early steps": 0.0, "warm-up and settling": 0.26, "hold and finish": 1.0}


def run(tasks: Sequence[Task], methods: Sequence[str], store: Store, progress: bool) -> int:
    """Measures methods on tasks that have a bound for ours, and prints and writes the ratios. Returns: the exit status."""
    environment = describe(1)
    kept = read_json(store.folder / "cost.json") or {}
    # What else was measured on this machine with these libraries stays.
    same = "environment" in kept and not changes(kept["environment"], environment)
    found = kept["tasks"] if same else {}
    for task in tasks:
        allowed = ALLOWED.get(task.name, ALLOWED_SMALL)
        of_task = found.setdefault(
            task.name, {"steps": task.steps, "allowed": allowed, "methods": {}}
        )
        for method in methods:
            about = f"{task.name}, {method}"
            trainings = [
                _measured(task, method, seed)
                for seed in tqdm(range(_REPEATS), desc=about, disable=not progress)
            ]
            ratios = [ratio for ratio, _ in trainings]
            median, least, most = statistics.median(ratios), min(ratios), max(ratios)
            of_task["methods"][method] = {
                "median": median,
                "least": least,
                "most": most,
                "repeats": _REPEATS,
                "parts": {
                    name: statistics.median(parts[name] for _, parts in trainings) for name in PARTS
                },
            }
            verdict = "which it is" if median <= allowed else "which it is not"
            bound = f"; it should be at most {allowed}, {verdict}" if method == METHOD else ""
            print(f"{about}: {median:.3f} times the base's time ({least:.3f} to {most:.3f}){bound}")
            write_json(store.folder / "cost.json", {"environment": environment, "tasks": found})
    print(f"written to {store.folder / 'cost.json'}")
    return 0


def _measured(task: Task, method: str, seed: int) -> tuple[float, dict[str, float]]:
    """Returns the method's time over the base's, and which part of the base's time it takes more in each of ``PARTS``."""
    tried, base = (Training(task, name, seed, DEFAULT_RATE) for name in (method, BASE))
    more = dict.fromkeys(PARTS, 0.0)
    for end in range(_STRETCH, task.steps + 1, _STRETCH):
        before = tried.seconds - base.seconds
        for training in (tried, base) if (end // _STRETCH) % 2 else (base, tried):
            training.advance(end)
        part = next(
            name for name, share in PARTS.items() if end <= max(share * task.steps, _STRETCH)
        )
        more[part] += tried.seconds - base.seconds - before
    return tried.seconds / base.seconds, {name: x / base.seconds for name, x in more.items()}

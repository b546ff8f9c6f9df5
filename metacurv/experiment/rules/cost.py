"""The cost of the directional rule: its steps and the base optimizer's, side by side through a whole training."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from tqdm import tqdm  # type: ignore[import-untyped]

from ..environment import describe
from ..storage import read_json, write_json
from .plan import DEFAULT_LR
from .store import Store
from .tasks import Task
from .training import Training

ALLOWED = {"transformer": 1.05, "conv": 1.05}  # of the base's time; other tasks:
ALLOWED_SMALL = 1.12
TASK_NAMES = ("transformer", "conv", "mlp-relu", "mlp-batch32", "digits-mlp")
_STRETCH = 20  # steps of one, then of the other, so that a machine that drifts slows both alike
_REPEATS = 5
METHOD, BASE = "directional", "user's rate"


def run(tasks: Sequence[Task], store: Store, progress: bool) -> int:
    """Measures tasks that have a bound, and prints and writes the ratios. Returns: the exit status."""
    environment = describe(1)
    kept = read_json(store.folder / "cost.json") or {}
    # Of another task, and of this machine and these libraries: stays.
    found = kept["tasks"] if kept.get("environment") == environment else {}
    for task in tasks:
        ratios = [
            _ratio(task, seed)
            for seed in tqdm(range(_REPEATS), desc=task.name, disable=not progress)
        ]
        allowed = ALLOWED.get(task.name, ALLOWED_SMALL)
        found[task.name] = {
            "median": statistics.median(ratios),
            "least": min(ratios),
            "most": max(ratios),
            "allowed": allowed,
            "repeats": _REPEATS,
            "steps": task.steps,
        }
        met = "met" if found[task.name]["median"] <= allowed else "not met"
        print(
            f"{task.name}: {found[task.name]['median']:.3f} x the base's time "
            f"({min(ratios):.3f} to {max(ratios):.3f}; required <= {allowed}: {met})"
        )
    write_json(store.folder / "cost.json", {"environment": environment, "tasks": found})
    print(f"written to {store.folder / 'cost.json'}")
    return 0


def _ratio(task: Task, seed: int) -> float:
    ours, base = (Training(task, method, seed, DEFAULT_LR) for method in (METHOD, BASE))
    for end in range(_STRETCH, task.steps + 1, _STRETCH):
        for training in (ours, base) if (end // _STRETCH) % 2 else (base, ours):
            training.advance(end)
    return ours.seconds / base.seconds

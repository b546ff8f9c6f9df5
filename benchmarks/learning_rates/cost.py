"""The cost of the directional rule: its steps and the base optimizer's, side by side through a whole training."""

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


def run(tasks: Sequence[Task], store: Store, progress: bool) -> int:
    """Measures tasks that have a bound, and prints and writes the ratios. Returns: the exit status."""
    environment = describe(1)
    kept = read_json(store.folder / "cost.json") or {}
    # Other tasks' times stay where they are of this machine and these libraries.
    same = "environment" in kept and not changes(kept["environment"], environment)
    found = kept["tasks"] if same else {}
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
        median = found[task.name]["median"]
        verdict = "which it is" if median <= allowed else "which it is not"
        print(
            f"{task.name}: {median:.3f} times the base's time ({min(ratios):.3f} to {max(ratios):.3f}); it should be at "
            f"most {allowed}, {verdict}"
        )
    write_json(store.folder / "cost.json", {"environment": environment, "tasks": found})
    print(f"written to {store.folder / 'cost.json'}")
    return 0


def _ratio(task: Task, seed: int) -> float:
    ours, base = (Training(task, method, seed, DEFAULT_RATE) for method in (METHOD, BASE))
    for end in range(_STRETCH, task.steps + 1, _STRETCH):
        for training in (ours, base) if (end // _STRETCH) % 2 else (base, ours):
            training.advance(end)
    return ours.seconds / base.seconds

"""Results that were not measured."""

from __future__ import annotations

from typing import Any

from benchmarks.learning_rates.plan import Run


def record(run: Run, value: float, average: float | None = None) -> dict[str, Any]:
    """As ``training.run`` returns it."""
    found = {"val_last": value, "test_last": value - 1}
    if average is not None:
        found |= {"val_average": average, "test_average": average - 1}
    return {
        "task": run.task, "method": run.method, "seed": run.seed, "steps": run.steps, "user_lr": run.user_lr,
        "seconds": 1.0, "rate": None, "diverged": False, "train_loss": 0.5, "curve": [], "torch": "2", **found,
    }  # fmt: skip

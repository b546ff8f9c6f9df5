"""Puts a finished run of the experiment into the README: python docs/mnist1d/publish.py RUN_FOLDER

Copies the run's files beside this script and writes the table between the README's experiment marks from its summary.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from benchmarks.readme_block import with_block  # noqa: E402

README = HERE.parent.parent / "README.md"
FILES = (
    "config.json",
    "environment.json",
    "loss_comparison.png",
    "metrics.csv",
    "report.txt",
    "summary.json",
)
COLUMNS = {
    "final train loss": ("final_train_loss", 3),
    "final test loss": ("final_test_loss", 3),
    "best test loss": ("best_test_loss", 3),
    "final test accuracy, %": ("final_test_accuracy", 1),
    "training time, s": ("total_seconds", 2),
}
NAMES = {"Adam": "Adam", "directional": "**directional rule**"}


def table(summary: dict[str, Any]) -> str:
    """One row a method: its mean, and under it the paired difference from Adam with its interval."""
    rows = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    differences = {
        (entry["method"], entry["alpha"]): entry for entry in summary["differences_from_adam"]
    }
    for method in summary["methods"]:
        alpha = method["alpha"]
        difference = differences.get((method["method"], alpha))
        cells = [
            NAMES[method["method"]] if alpha is None else f"reciprocal rule, alpha = {alpha:g}"
        ]
        for key, digits in COLUMNS.values():
            cell = f"{method[key]['mean']:.{digits}f}"
            if difference is not None:
                d = difference[key]
                low, high = d["low"], d["high"]
                cell += f"<br><sub>{d['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]</sub>"
            cells.append(cell)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    for name in FILES:
        shutil.copy(run / name, HERE / name)
    README.write_text(with_block(README.read_text(), table(summary), "experiment"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

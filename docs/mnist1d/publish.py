"""Puts a finished run of the experiment into the documentation: python docs/mnist1d/publish.py [RUN_FOLDER]

Copies the run's files beside this script and writes the table of docs/results/mnist1d.md from its summary; without a folder,
from the summary that is here.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent))

from benchmarks.page_block import ROOT, write_block  # noqa: E402

PAGE = ROOT / "docs" / "results" / "mnist1d.md"
NAME = "experiment"
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
NAMES = {"Adam": "Adam", "directional": "**directional**"}


def table(summary: dict[str, Any]) -> str:
    """One row a method: its mean, and under it the paired difference from Adam with its interval."""
    rows = ["| method | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    differences = {
        (entry["method"], entry["alpha"]): entry for entry in summary["differences_from_adam"]
    }
    for method in summary["methods"]:
        alpha = method["alpha"]
        difference = differences.get((method["method"], alpha))
        cells = [NAMES[method["method"]] if alpha is None else f"reciprocal, alpha={alpha:g}"]
        for key, digits in COLUMNS.values():
            cell = f"{method[key]['mean']:.{digits}f}"
            if difference is not None:
                d = difference[key]
                low, high = d["low"], d["high"]
                cell += f"<br><sub>{d['mean']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]</sub>"
            cells.append(cell)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


def main(run: Path | None) -> None:
    if run is not None:
        for name in FILES:
            shutil.copy(run / name, HERE / name)
    write_block(PAGE, NAME, table(json.loads((HERE / "summary.json").read_text())))


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]) if len(sys.argv) == 2 else None)

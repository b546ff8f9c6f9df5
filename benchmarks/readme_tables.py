"""The two small tables of README.md, from stored results: python benchmarks/readme_tables.py [--update]

Rows of the first are the ways in which a user may come to a learning rate: ours, the best rival, and the base
optimizer untuned, with a setting from elsewhere, and tuned on the task. Its columns are the sets of tasks. Rows of the second
are what a user calls: ``estimate_trace`` on each kind of network against the best of the others, ``hessian_trace`` against
PyHessian, and the one comparison of whole measurements that plain torch wins.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # run by its path, python sees this folder alone

from benchmarks.learning_rates.grid import GRID, RATES  # noqa: E402
from benchmarks.learning_rates.tables import row  # noqa: E402
from benchmarks.page_block import write_block  # noqa: E402
from benchmarks.table import PROMISES, Row, comparisons, number, rows  # noqa: E402
from metacurv.experiment.statistics import Interval  # noqa: E402

README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
SPEED = RESULTS / "full.json"
MOST_ROWS = 6
SETS = {"first": RESULTS / "rules" / "summary.json", "new": RESULTS / "new_tasks" / "summary.json"}
# A method's label -> (what README.md calls it, trainings that a user pays for it).
WAYS = {
    "directional": ("**MetaCurvatureLR**, given no rate", 1),
    "prodigy cosine": ("Prodigy, cosine schedule", 1),
    "base, lr=0.001 (SGD: 0.01)": ("base at its default rate", 1),
    "base, one setting carried over": (
        "base, best setting of the other tasks",
        1,
    ),
    "best constant rate, tuned on the task": (
        "base, best constant rate",
        len(RATES),
    ),
    "best of the grid, tuned on the task": ("base, best of the grid", len(GRID)),
}
# (text, other) of a line of the speed table -> what README.md calls the two sides.
LINES = {
    ("Hessian to 1 %, ReLU MLP, untrained and trained", "the best that samples it"): (
        "Hessian trace to 1 %, ReLU network",
        "the best method that samples",
    ),
    ("Hessian to 1 %, tanh MLP, trained", "the best that samples it"): (
        "Hessian trace to 1 %, trained tanh network",
        "the best method that samples",
    ),
    ("GGN to 2 %, character transformer", "the best that can"): (
        "Gauss-Newton trace to 2 %, character transformer",
        "the best other method",
    ),
    ("GGN to 2 %, CNN on digits", "the best, exact ones included"): (
        "Gauss-Newton trace to 2 %, convolutional network",
        "the best other method",
    ),
    ("`hessian_trace`, MLP 40-100-100-10, worst of K = 1, 4, 16, 64", "PyHessian"): (
        "`hessian_trace`, equal number of probes, ReLU network",
        "PyHessian",
    ),
    ("Hessian to 1 %, ReLU MLP, where it is the GGN", "the same in plain torch, by hand"): (
        "Hessian trace, ReLU network",
        "the same by hand in plain torch, nothing checked",
    ),
}


def results_table(summaries: dict[str, dict[str, Any]]) -> str:
    """A row a way: on each set of tasks the error over that of the grid's best point, the geometric mean over its tasks."""
    head = ["how the rate was set", "trainings"]
    columns = []
    for name, summary in summaries.items():
        head.append(f"error on the {len(summary['tasks'])} {name} tasks")
        columns.append({row["label"]: row["log_ratio"] for row in summary["over_tasks"]["methods"]})
    text = [row(head), "|" + "---|" * len(head)]
    for label, (called, trainings) in WAYS.items():
        cells = [factor(Interval(**column[label])) for column in columns]
        text.append(row([called, str(trainings), *cells]))
    return "\n".join(text)


def factor(log_ratio: Interval) -> str:
    """The ratio and its interval, of their logarithms."""
    mean, low, high = (math.exp(v) for v in (log_ratio.mean, log_ratio.low, log_ratio.high))
    return f"× {mean:.2f} [{low:.2f}, {high:.2f}]"


def speed_table(result: dict[str, Any]) -> str:
    """Times of whole calls."""
    found = {
        (each.line.text, each.line.other): each for each in rows(comparisons([result]), PROMISES)
    }
    text = [
        "| what | time | against | its time | metacurv is |",
        "|---|---|---|---|---|",
        *(speed_row(found[line], *called) for line, called in LINES.items()),
    ]
    return "\n".join(text)


def speed_row(row: Row, what: str, other: str) -> str:
    measured = row.measured
    if measured is None or measured.interval is None:
        raise ValueError(f"{row.line.text} against {row.line.other}: not among the stored results")
    low, high = measured.interval
    ratio = f"{number(measured.value)} × as fast [{number(low)}, {number(high)}]"
    return f"| {what} | {measured.ours} | {other} | {measured.other} | {ratio} |"


def tables() -> dict[str, str]:
    """The blocks by the names of their marks."""
    return {
        "results": results_table(
            {name: json.loads(path.read_text()) for name, path in SETS.items() if path.exists()}
        ),
        "speed": speed_table(json.loads(SPEED.read_text())),
    }


def main(arguments: list[str]) -> int:
    if arguments not in ([], ["--update"]):
        print(__doc__, file=sys.stderr)
        return 2
    for name, table in tables().items():
        print(table, end="\n\n")
        if arguments:
            write_block(README, name, table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

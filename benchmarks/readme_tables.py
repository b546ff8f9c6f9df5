"""The two small tables of README.md, from stored results: python benchmarks/readme_tables.py [--update]

Rows of the first are chosen by what can differ between trainings, one task each: the base optimizer (SGD), the network
(convolutions, a transformer), the batch size (the smaller of the two that were tried) and the data (both regressions, of which
one overfits). Rows of the second are what a user calls: ``estimate_trace`` on each kind of network against the best of the
others, ``hessian_trace`` against PyHessian, and the one comparison of whole measurements that plain torch wins.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # run by its path, python sees this folder alone

from benchmarks.learning_rates.grid import RATES  # noqa: E402
from benchmarks.page_block import write_block  # noqa: E402
from benchmarks.table import PROMISES, Row, comparisons, number, rows  # noqa: E402
from metacurv.experiment.statistics import Interval  # noqa: E402

README = ROOT / "README.md"
RULES = ROOT / "benchmarks" / "results" / "rules" / "summary.json"
SPEED = ROOT / "benchmarks" / "results" / "full.json"
MOST_ROWS = 6
SIDES = {1: "better", 0: "level", -1: "worse"}  # of zero, on which the interval of a gain is

TASKS = {
    "mlp-sgd": "SGD with momentum, perceptron on mnist1d",
    "conv": "Adam, convolutional network on mnist1d",
    "transformer": "AdamW, character transformer on text",
    "mlp-batch32": "Adam, perceptron on mnist1d, batches of 32",
    "friedman": "Adam, regression on Friedman's function",
    "diabetes": "Adam, regression on diabetes data, which overfits",
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


def results_table(summary: dict[str, Any]) -> str:
    """``MetaCurvatureLR`` without a rate against the base optimizer at its best constant rate."""
    by_name = {task["task"]: task for task in summary["tasks"]}
    text = [
        f"| task | MetaCurvatureLR, given no rate, against the best of {len(RATES)} constant rates |",
        "|---|---|",
    ]
    for name, called in TASKS.items():
        task = by_name[name]
        ours = next(entry for entry in task["methods"] if entry["method"] == "directional")
        best = task["best_constant"]
        against = difference(task["unit"], ours["gain_over_best_constant"], best["test_mean"])
        text.append(f"| {called} | {against} |")
    return "\n".join(text)


def difference(unit: str, gain: dict[str, Any], reference: float) -> str:
    """In words and with its interval: points of accuracy, or per cent of the reference's error or loss."""
    side = SIDES[Interval(**gain).side]
    if unit == "accuracy, %":
        mean, low, high = (f"{gain[key]:+.1f}" for key in ("mean", "low", "high"))
        return f"{side}: {mean} points [{low}, {high}]"
    # A gain is a smaller error.
    mean, low, high = (f"{-100 * gain[key] / reference:+.1f}" for key in ("mean", "high", "low"))
    what = "error" if unit == "MSE x 1000" else "loss"
    return f"{side}: {mean} % {what} [{low}, {high}]"


def speed_table(result: dict[str, Any]) -> str:
    """Times of whole calls."""
    found = {(row.line.text, row.line.other): row for row in rows(comparisons([result]), PROMISES)}
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
        "results": results_table(json.loads(RULES.read_text())),
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

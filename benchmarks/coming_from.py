"""The tables of docs/coming-from, from stored results: python benchmarks/coming_from.py

The page of a library that measures shows times of single comparisons with it, from full.json. The page of an optimizer shows
the test results of both on every task and the paired gain over it, from the runs in benchmarks/results/rules.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # run by its path, python sees this folder alone

from benchmarks.learning_rates import summary  # noqa: E402
from benchmarks.learning_rates.store import Store  # noqa: E402
from benchmarks.learning_rates.tasks import TASKS  # noqa: E402
from benchmarks.page_block import write_block  # noqa: E402
from benchmarks.publish_rules import KEPT, SEEDS  # noqa: E402
from benchmarks.table import comparisons, measure, ratio  # noqa: E402

PAGES = ROOT / "docs" / "coming-from"
SPEED = ROOT / "benchmarks" / "results" / "full.json"
SMALL, LARGE = "perceptron 40-100-100-10", "perceptron 40-256-256-10"
RELU = (
    "Hessian trace to 1 %, trained ReLU network",
    "estimate_trace / relu MLP, trained / to 1 % / ",
)
TANH = (
    "Hessian trace to 1 %, trained tanh network",
    "estimate_trace / tanh MLP, trained / to 1 % / ",
)
CNN = (
    "Gauss-Newton trace to 2 %, trained convolutional network",
    "estimate_trace / digits CNN, trained / to 2 % / ",
)
TRANSFORMER = (
    "Gauss-Newton trace to 2 %, trained character transformer",
    "estimate_trace / character transformer, trained / to 2 % / ",
)


def same_probes(k: int, network: str, other: str) -> tuple[tuple[str, str], str]:
    """What both take for ``k`` probes of a perceptron's Hessian trace."""
    layers = network.rpartition(" ")[2]
    what = f"Hessian trace by {k} probe{'s' if k > 1 else ''}, {network}"
    return (what, f"hessian_trace / {layers} / K={k} / "), other


# page -> (what both compute and how the comparison is called without the other method, the other method)
TIMES = {
    "pyhessian": [
        same_probes(1, SMALL, "PyHessian"),
        same_probes(16, SMALL, "PyHessian"),
        same_probes(64, LARGE, "PyHessian"),
        (RELU, "PyHessian"),
        (TANH, "PyHessian"),
    ],
    "curvlinops": [
        same_probes(16, SMALL, "curvlinops"),
        same_probes(16, LARGE, "curvlinops"),
        (RELU, "curvlinops Hutchinson"),
        (RELU, "curvlinops Hutch++"),
        (TANH, "curvlinops Hutch++"),
        (CNN, "curvlinops XTrace, GGN"),
        (TRANSFORMER, "curvlinops Hutchinson, GGN"),
    ],
    "backpack": [
        (RELU, "BackPACK DiagGGNExact"),
        (TANH, "BackPACK DiagHessian"),
        (CNN, "BackPACK DiagGGNExact"),
        (CNN, "BackPACK DiagGGNMC"),
        (TRANSFORMER, "BackPACK GGN product"),
        same_probes(16, SMALL, "BackPACK, exact"),
        same_probes(16, LARGE, "BackPACK, exact"),
    ],
}
OPTIMIZERS = {
    "prodigy": ("prodigy", "prodigy cosine"),
    "schedule-free": ("schedule-free", "schedule-free 0.01"),
}


def times(page: str) -> str:
    """A row a comparison."""
    found = comparisons([json.loads(SPEED.read_text())])
    lines = [
        "| what | metacurv | the other | takes | metacurv is (95 % interval) |",
        "|---" * 5 + "|",
    ]
    for (what, begin), other in TIMES[page]:
        measured = measure("faster", found[begin + other])
        lines.append(
            f"| {what} | {measured.ours} | {other} | {measured.other} | {ratio('faster', measured)} |"
        )
    return "\n".join(lines)


def results(page: str) -> str:
    """A row a task, and how often ``directional`` is better, level or worse."""
    others = OPTIMIZERS[page]
    store = Store(KEPT)
    lines = [f"| task | `directional` | {' | '.join(f'`{name}`' for name in others)} |"]
    lines.append("|---" * (2 + len(others)) + "|")
    sides: dict[str, list[int]] = {name: [] for name in others}
    for task in TASKS.values():
        found = summary.summarise(task, store.by_method(task), SEEDS)
        assert found is not None
        digits = 3 if task.measure == "loss" else 2
        entries = {entry.name: entry for entry in found.methods}
        ours = entries["directional"]
        cells = [f"{task.name}<br><sub>{task.unit}</sub>", shown(ours, digits)]
        for name in others:
            gain = found.gain(ours, entries[name])
            sides[name].append(gain.side)
            paired = f"{gain.mean:+.{digits}f} [{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"
            cells.append(f"{shown(entries[name], digits)}<br><sub>{paired}</sub>")
        lines.append(f"| {' | '.join(cells)} |")
    counts = [
        f"better than `{name}` on {of.count(1)} tasks, level on {of.count(0)}, worse on {of.count(-1)}"
        for name, of in sides.items()
    ]
    return "\n".join(lines) + f"\n\n`directional` is {'; '.join(counts)}."


def shown(entry: summary.Entry, digits: int) -> str:
    return f"{entry.mean:.{digits}f} ± {entry.error:.{digits}f}"


def block(page: str) -> str:
    """What stands on the page between the marks of its name."""
    return times(page) if page in TIMES else results(page)


def main() -> None:
    for page in (*TIMES, *OPTIMIZERS):
        write_block(PAGES / f"{page}.md", page, block(page))


if __name__ == "__main__":
    main()

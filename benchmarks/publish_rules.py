"""Puts finished runs of the rules' comparison into the documentation: python benchmarks/publish_rules.py [RUN_FOLDER [SET]]

Copies the folder's results to benchmarks/results, the grid's without their curves, and writes the tables of
docs/results/learning-rate.md from them; without a folder, from the results that are there. SET is "standard", the default,
"new" for the new tasks or "safety" for the sweep. To go on with published results, copy their *.jsonl into a run folder and
give that as --out.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.learning_rates import across_tables, labels, rates, report, safety_table, tables  # noqa: E402
from benchmarks.learning_rates.cost import METHOD, PARTS  # noqa: E402
from benchmarks.learning_rates.options import FOLDERS, PUBLISHED_RESULTS  # noqa: E402
from benchmarks.learning_rates.safety_sweep import NAME as SAFETY  # noqa: E402
from benchmarks.learning_rates.store import Store  # noqa: E402
from benchmarks.learning_rates.summary import TaskSummary  # noqa: E402
from benchmarks.learning_rates.task_sets import SETS  # noqa: E402
from benchmarks.page_block import ROOT, write_block  # noqa: E402

KEPT = PUBLISHED_RESULTS / FOLDERS["standard"]
PAGE = ROOT / "docs" / "results" / "learning-rate.md"
FILES = (*report.FILES, "cost.json", "sensitivity.json", "sensitivity.png", "safety.md")
SHOWN = ("directional", "directional, no horizon", "searched")
SEEDS = range(10)
NO_RUNS = "No runs yet."


def table() -> str:
    """A row a task, from the kept runs."""
    done, _ = kept("standard")
    return tables.overview(done, SHOWN)


def over_tasks(tasks: str) -> str:
    """A row a method, over all tasks of a set."""
    done, store = kept(tasks)
    return across_tables.overall(report.over_tasks(done, store)) if done else NO_RUNS


def kept(tasks: str) -> tuple[list[TaskSummary], Store]:
    """The summaries of a set's tasks, and the runs."""
    store = Store(PUBLISHED_RESULTS / FOLDERS[tasks])
    return report.summaries(SETS[tasks].values(), SEEDS, store), store


def held_rates() -> str:
    """A row a task of all sets: the rate that the rule holds, and how far seeds lie apart."""
    found = {}
    for name in SETS:
        done, store = kept(name)
        for each in done:
            of_all = rates.found(store.by_method(each.task))
            found[each.task.name] = {method: of_all[method] for method in SHOWN if method in of_all}
    return across_tables.rates(found)


def cost() -> str:
    """Time of each method's steps over that of the base's, with the bound that was set for ours, and its parts."""
    measured = json.loads((KEPT / "cost.json").read_text())["tasks"]
    lines = [tables.row(["method", *measured]), "|---" * (1 + len(measured)) + "|"]
    bounds = []
    for found in measured.values():
        kept = found["methods"][METHOD]["median"] <= found["allowed"]
        bounds.append(f"≤ {found['allowed']:g}, {'kept' if kept else '**not kept**'}")
    lines.append(tables.row([f"bound for `{METHOD}`", *bounds]))
    names = dict.fromkeys(m for found in measured.values() for m in found["methods"])
    for name in sorted(names, key=lambda name: name != METHOD):
        cells = [
            f"{of['median']:.3f} ({of['least']:.3f} to {of['most']:.3f})"
            if (of := found["methods"].get(name))
            else ""
            for found in measured.values()
        ]
        lines.append(tables.row([f"`{labels.method(name)}`", *cells]))
        if name == METHOD:
            for part in PARTS:
                shares = [found["methods"][METHOD]["parts"][part] for found in measured.values()]
                lines.append(tables.row([f"of it {part}", *(f"{100 * x:.1f} %" for x in shares)]))
    return "\n".join(lines)


def safety() -> str:
    """How many runs of the sweep end above the loss of their first step, and which are the worst."""
    path = PUBLISHED_RESULTS / FOLDERS["safety"] / SAFETY
    if not path.exists():
        return NO_RUNS
    return safety_table.table([json.loads(line) for line in path.read_text().splitlines()])


BLOCKS: dict[str, Callable[[], str]] = {
    "rules": table,
    "over-tasks": lambda: over_tasks("standard"),
    "over-new-tasks": lambda: over_tasks("new"),
    "held-rates": held_rates,
    "safety": safety,
    "cost": cost,
}


def take(run: Path, to: Path) -> None:
    """Copies what is kept of a run."""
    to.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (run / name).exists():
            shutil.copy(run / name, to / name)
    for path in run.glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record.get("method", "").startswith("grid "):
                record.pop("curve", None)  # gone already from results that were published before
        (to / path.name).write_text("".join(json.dumps(record) + "\n" for record in records))


def main(run: Path | None = None, tasks: str = "standard") -> None:
    if run is not None:
        take(run, PUBLISHED_RESULTS / FOLDERS[tasks])
    for name, made in BLOCKS.items():
        write_block(PAGE, name, made())


if __name__ == "__main__":
    if len(sys.argv) > 3 or (len(sys.argv) == 3 and sys.argv[2] not in FOLDERS):
        sys.exit(__doc__)
    main(*map(Path, sys.argv[1:2]), *sys.argv[2:])

"""Puts finished runs of the rules' comparison into the documentation: python benchmarks/publish_rules.py [RUN_FOLDER]

Copies the folder's results to benchmarks/results/rules, the grid's without their curves, and writes the tables of
docs/results/learning-rate.md from them; without a folder, from the results that are there. To go on with published results,
copy their *.jsonl into a run folder and give that as --out.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.page_block import ROOT, write_block  # noqa: E402
from metacurv.experiment.rules import summary, tables  # noqa: E402
from metacurv.experiment.rules.store import Store  # noqa: E402
from metacurv.experiment.rules.tasks import TASKS  # noqa: E402

KEPT = HERE / "results" / "rules"
PAGE = ROOT / "docs" / "results" / "learning-rate.md"
NAME, RANKS, COST = "rules", "ranks", "cost"
FILES = (
    "summary.md",
    "summary.json",
    "rules.png",
    "cost.json",
    "sensitivity.json",
    "sensitivity.png",
    "settings/settings.json",
    "settings/settings.png",
)
SHOWN = ("directional", "directional, no horizon", "directional, held out")
SEEDS = range(10)


def table() -> str:
    """A row a task, from the kept runs."""
    store = Store(KEPT)
    found = [summary.summarise(task, store.by_method(task), SEEDS) for task in TASKS.values()]
    return tables.overview([each for each in found if each is not None], SHOWN)


def ranks() -> str:
    """Each method's mean rank over the tasks."""
    means = json.loads((KEPT / "summary.json").read_text())["mean_ranks"]
    rows = [f"| `{name}` | {rank:.1f} |" for name, rank in means.items()]
    return "\n".join(["| method | mean rank |", "|---|---|", *rows])


def cost() -> str:
    """Time of the directional rule's steps over that of the base's."""
    rows = ["| task | steps | times the base's time | least and most of five | promise | kept |"]
    rows.append("|---" * 6 + "|")
    for task, found in json.loads((KEPT / "cost.json").read_text())["tasks"].items():
        kept = "yes" if found["median"] <= found["allowed"] else "**no**"
        rows.append(
            f"| {task} | {found['steps']} | {found['median']:.3f} "
            f"| {found['least']:.3f} to {found['most']:.3f} | ≤ {found['allowed']:g} | {kept} |"
        )
    return "\n".join(rows)


def take(run: Path) -> None:
    """Copies what is kept of a run."""
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (run / name).exists():
            shutil.copy(run / name, KEPT / Path(name).name)
    for path in run.glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["method"].startswith("grid "):
                record.pop("curve", None)  # gone already from results that were published before
        (KEPT / path.name).write_text("".join(json.dumps(record) + "\n" for record in records))


def main(run: Path | None) -> None:
    if run is not None:
        take(run)
    for name, made in ((NAME, table), (RANKS, ranks), (COST, cost)):
        write_block(PAGE, name, made())


if __name__ == "__main__":
    if len(sys.argv) > 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]) if len(sys.argv) == 2 else None)

"""Puts finished runs of the rules' comparison into the README: python benchmarks/publish_rules.py RUN_FOLDER

Copies the folder's results to benchmarks/results/rules, the grid's without their curves, and writes the table between the
README's marks from them. To go on with published results, copy their *.jsonl into a run folder and give that as --out.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

from metacurv.experiment.rules import summary, tables
from metacurv.experiment.rules.store import Store
from metacurv.experiment.rules.tasks import TASKS

HERE = Path(__file__).resolve().parent
KEPT = HERE / "results" / "rules"
README = HERE.parent / "README.md"
FILES = (
    "summary.md",
    "summary.json",
    "rules.png",
    "cost.json",
    "sensitivity.json",
    "sensitivity.png",
)
SHOWN = ("directional", "directional, no horizon", "directional, held out")
SEEDS = range(10)


def main(run: Path) -> None:
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        if (run / name).exists():
            shutil.copy(run / name, KEPT / name)
    for path in run.glob("*.jsonl"):
        records = [json.loads(line) for line in path.read_text().splitlines()]
        for record in records:
            if record["method"].startswith("grid "):
                del record["curve"]
        (KEPT / path.name).write_text("".join(json.dumps(record) + "\n" for record in records))
    store = Store(run)
    found = [summary.summarise(task, store.by_method(task), SEEDS) for task in TASKS.values()]
    table = tables.overview([each for each in found if each is not None], SHOWN)
    marks = re.compile(r"(<!-- rules:begin -->\n).*?(<!-- rules:end -->)", re.S)
    text, count = marks.subn(lambda match: match[1] + table + match[2], README.read_text())
    if count != 1:
        sys.exit(f"{README} must have one pair of rules marks, has {count}")
    README.write_text(text)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

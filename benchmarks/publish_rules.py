"""Puts finished runs of the rules' comparison into the README: python benchmarks/publish_rules.py RUN_FOLDER

Copies the folder's results to benchmarks/results/rules, the grid's without their curves, and writes the table between the
README's marks from them. To go on with published results, copy their *.jsonl into a run folder and give that as --out.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from benchmarks.readme_block import with_block  # noqa: E402
from metacurv.experiment.rules import summary, tables  # noqa: E402
from metacurv.experiment.rules.store import Store  # noqa: E402
from metacurv.experiment.rules.tasks import TASKS  # noqa: E402

KEPT = HERE / "results" / "rules"
README = HERE.parent / "README.md"
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


def main(run: Path) -> None:
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
    store = Store(run)
    found = [summary.summarise(task, store.by_method(task), SEEDS) for task in TASKS.values()]
    table = tables.overview([each for each in found if each is not None], SHOWN)
    README.write_text(with_block(README.read_text(), table.rstrip(), "rules"))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))

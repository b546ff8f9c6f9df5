"""The command line of the comparison of variants of the directional rule."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from metacurv.experiment.environment import describe
from metacurv.experiment.storage import read_json, write_atomically, write_json

from ..cli import INTERRUPTED
from ..store import Store
from ..task import Task
from ..workers import complete
from . import options, plan, single, summary, table
from .tasks import STANDARD, TASKS
from .variants import VARIANTS


def main(argv: Sequence[str] | None = None) -> int:
    """Trains what is missing, and compares. Returns: the exit status."""
    parser = options.build_parser()
    arguments = parser.parse_args(argv)
    seeds = range(arguments.seed_start, arguments.seed_start + arguments.seeds)
    try:
        plan.check_seeds(seeds)
    except ValueError as error:
        parser.error(str(error))
    tasks = [TASKS[name] for name in dict.fromkeys(arguments.tasks)]
    variants = list(dict.fromkeys(arguments.variants))
    store, trains = Store(arguments.out), not arguments.summary_only
    try:
        if trains:
            runs = plan.runs(tasks, variants, seeds)
            complete(
                runs, store, arguments.jobs, "development",
                progress=arguments.progress, do=single.train,
            )  # fmt: skip
    except KeyboardInterrupt:
        print("\nInterrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    return write(tasks, variants, seeds, store, trained=trains)


def write(
    tasks: Sequence[Task],
    variants: Sequence[str],
    seeds: Sequence[int],
    store: Store,
    *,
    trained: bool,
) -> int:
    """Prints the table, and writes summary.md and summary.json. Returns: the exit status."""
    found = summary.summarise(tasks, variants, seeds, store)
    if not found:
        print(f"{store.folder} has no task whose reference is finished", file=sys.stderr)
        return 1
    text = table.table(found, variants)
    commits = summary.commits(tasks, variants, store)
    before = read_json(store.folder / "summary.json")
    write_atomically(store.folder / "summary.md", text)
    write_json(
        store.folder / "summary.json",
        {
            "environment": describe(1) if trained or before is None else before["environment"],
            "commits": commits,
            "variants": {
                name: {
                    "rule": dict(VARIANTS[name].rule),
                    "patches": {place: _plain(v) for place, v in VARIANTS[name].patches.items()},
                }
                for name in variants
            },
            "tasks": [summary.to_json(each) for each in found],
            "means": {
                "standard": _means([s for s in found if s.task.name in STANDARD], variants),
                "all": _means(found, variants),
            },
        },
    )
    print(text)
    if len(commits) > 1:
        print(
            f"The runs are of {len(commits)} commits: {', '.join(commits)}. Where the rule is not the same in them, remove the "
            f"older runs from {store.folder} and give the command again.\n"
        )
    print(f"written to {store.folder}: summary.md, summary.json")
    return 0


def _plain(instead: object) -> float | str:
    return instead if isinstance(instead, float) else getattr(instead, "__name__", str(instead))


def _means(
    found: Sequence[summary.TaskSummary], variants: Sequence[str]
) -> dict[str, dict[str, float]]:
    means = {name: summary.mean(found, name) for name in variants}
    return {name: vars(each) for name, each in means.items() if each is not None}

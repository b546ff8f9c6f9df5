"""The command line of the comparison of rules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..environment import describe
from ..storage import read_json, write_atomically, write_json
from . import cost, figures, labels, options, plan, sensitivity, settings, summary, tables
from .store import Store
from .tasks import TASKS, Task
from .workers import complete

INTERRUPTED = 130
FEW_SEEDS = 5


def main(argv: Sequence[str]) -> int:
    """Run the comparison that the arguments describe. Returns: the exit status."""
    parser = options.build_parser()
    arguments = parser.parse_args(argv)
    tasks = [TASKS[name] for name in options.chosen_tasks(parser, arguments)]
    if arguments.quick:
        tasks = [replace(task, steps=options.QUICK_STEPS) for task in tasks]
    n_seeds = arguments.seeds or (options.QUICK_SEEDS if arguments.quick else 10)
    seeds = range(arguments.seed_start, arguments.seed_start + n_seeds)
    store = Store(arguments.out or Path("runs") / ("rules-quick" if arguments.quick else "rules"))
    methods = options.chosen_methods(arguments.methods)
    jobs = arguments.jobs or 1
    try:
        if arguments.cost:
            return cost.run(tasks, store, arguments.progress)
        if arguments.sensitivity and arguments.summary_only:
            return sensitivity.redraw(store.folder)
        if arguments.settings and arguments.summary_only:
            return settings.redraw(store.folder)
        if arguments.sensitivity:
            return sensitivity.run(tasks, seeds, store, jobs, arguments.progress)
        if arguments.settings:
            apart = Store(
                store.folder / settings.FOLDER
            )  # these runs are no part of the comparison
            return settings.run(tasks, seeds, apart, jobs, arguments.progress)
        if not arguments.summary_only:
            with_grid = arguments.methods is None or "grid" in arguments.methods
            for task in tasks:
                _train(task, methods, seeds, store, with_grid, jobs, arguments.progress)
                if task is not tasks[-1]:
                    _report(tasks, methods, seeds, store, quiet=True)
        _report(tasks, methods, seeds, store, quiet=False, trained=not arguments.summary_only)
    except KeyboardInterrupt:
        print("\nInterrupted; run the same command again to go on", file=sys.stderr)
        return INTERRUPTED
    return 0


def _train(
    task: Task,
    methods: Sequence[str],
    seeds: range,
    store: Store,
    with_grid: bool,
    jobs: int,
    progress: bool,
) -> None:
    def grid() -> list[plan.Run]:
        return plan.grid_runs(task, seeds, store.get) if with_grid else []

    def others() -> list[plan.Run]:
        return plan.method_runs(task, methods, seeds)

    # What the grid's second round is, is known when the first is finished.
    for stage in (others, grid, grid):
        complete(stage(), store, jobs, task.name, progress=progress)


def _report(
    tasks: Sequence[Task],
    methods: Sequence[str],
    seeds: range,
    store: Store,
    *,
    quiet: bool,
    trained: bool = True,
) -> None:
    found = [summary.summarise(task, store.by_method(task), seeds) for task in tasks]
    done = [each for each in found if each is not None]
    if not done:
        if not quiet:
            print("nothing to summarise yet: no task has its whole grid")
        return
    ranks = summary.mean_ranks(done)
    ranking = "mean rank over the tasks, 1 is best:\n\n" + "".join(
        f"    {rank:5.2f}  {labels.ranked(name)}\n" for name, rank in ranks.items()
    )
    table = tables.overview(done, methods)
    text = "\n".join([table, ranking, tables.by_task(done)])
    write_atomically(store.folder / "summary.md", text)
    before = read_json(store.folder / "summary.json")
    write_json(
        store.folder / "summary.json",
        {
            "environment": describe(1) if trained or before is None else before["environment"],
            "tasks": [summary.to_json(each) for each in done],
            "mean_ranks": {labels.ranked(name): rank for name, rank in ranks.items()},
        },
    )
    write_atomically(store.folder / "rules.png", figures.draw_gains(done))
    if not quiet:
        print(tables.for_terminal(done, methods))
        if len(seeds) < FEW_SEEDS:
            print(
                f"{len(seeds)} seeds are too few to tell methods apart: this shows that it runs.\n"
            )
        print(ranking)
        print(f"written to {store.folder}: summary.md, summary.json, rules.png")

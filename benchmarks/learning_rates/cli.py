"""The command line of the comparison of rules."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from . import cost, options, plan, references, report, safety_sweep, sensitivity
from .package_files import MissingDataError
from .store import Store
from .task import Task
from .task_sets import SETS
from .workers import complete

INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run the comparison that the arguments describe. Returns: the exit status."""
    parser = options.build_parser()
    arguments = parser.parse_args(argv)
    names = options.chosen_tasks(parser, arguments)
    methods = options.chosen_methods(parser, arguments)
    tasks = [SETS[arguments.set][name] for name in names]
    if arguments.quick:
        tasks = [replace(task, steps=options.QUICK_STEPS) for task in tasks]
    n_seeds = arguments.seeds or options.usual_seeds(arguments)
    seeds = range(arguments.seed_start, arguments.seed_start + n_seeds)
    folder, jobs, progress = options.run_folder(arguments), arguments.jobs or 1, arguments.progress
    try:
        if arguments.safety:
            return safety_sweep.run(
                names, seeds, folder, jobs, progress=progress, train=not arguments.summary_only,
            )  # fmt: skip
        store = Store(folder)
        if arguments.cost:
            return cost.run(
                tasks, methods if arguments.methods else (cost.METHOD,), store, progress
            )
        if arguments.sensitivity and arguments.summary_only:
            return sensitivity.redraw(store.folder)
        if arguments.sensitivity:
            return sensitivity.run(tasks, seeds, store, jobs, progress)
        if not arguments.summary_only:
            with_grid = options.trains_the_grid(arguments)
            for task in tasks:
                _train(task, methods, seeds, store, with_grid, jobs, progress)
                if task is not tasks[-1]:
                    report.write(tasks, methods, seeds, store, quiet=True)
            while with_grid and (runs := references.missing(tasks, seeds, store)):
                complete(runs, store, jobs, "what all are compared with", progress=progress)
        trained = not arguments.summary_only
        report.write(tasks, methods, seeds, store, quiet=False, trained=trained)
    except MissingDataError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
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

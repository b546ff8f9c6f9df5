"""The report on a set of tasks: tables, numbers and pictures of all runs that a folder holds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from metacurv.experiment.environment import describe
from metacurv.experiment.storage import read_json, write_atomically, write_json

from . import (
    across,
    across_tables,
    figures,
    labels,
    profile_figure,
    profiles,
    rates,
    summary,
    tables,
)
from .carried_over import carried_over
from .regret import log_ratios, mean_errors
from .searched import SEARCHED
from .store import Store
from .summary import TaskSummary
from .task import Task

FILES = ("summary.md", "summary.json", "rules.png", "profile.png")
FEW_SEEDS = 5


def write(
    tasks: Sequence[Task],
    methods: Sequence[str],
    seeds: Sequence[int],
    store: Store,
    *,
    quiet: bool,
    trained: bool = True,
) -> None:
    """Writes the files of ``FILES`` about the tasks whose grid is finished, and prints what they say unless ``quiet``."""
    done = summaries(tasks, seeds, store)
    if not done:
        if not quiet:
            print("nothing to summarise yet: no task has its whole grid")
        return
    ranks = summary.mean_ranks(done)
    ranking = "mean rank over the tasks, 1 is best:\n\n" + "".join(
        f"    {rank:5.2f}  {labels.ranked(name)}\n" for name, rank in ranks.items()
    )
    rows = over_tasks(done, store)
    overall = across_tables.overall(rows)
    found = {s.task.name: rates.found(store.by_method(s.task)) for s in done}
    text = "\n".join(
        filter(
            None,
            [
                tables.overview(done, _shown(methods, done)),
                ranking,
                overall,
                across_tables.rates(found),
                tables.by_task(done),
            ],
        )
    )
    write_atomically(store.folder / "summary.md", text)
    before = read_json(store.folder / "summary.json")
    write_json(
        store.folder / "summary.json",
        {
            "environment": describe(1) if trained or before is None else before["environment"],
            "tasks": [summary.to_json(each) for each in done],
            "mean_ranks": {labels.ranked(name): rank for name, rank in ranks.items()},
            "over_tasks": across_tables.to_json(rows, _carried(done, store)),
            "rates": {
                task: {name: vars(each) for name, each in by_method.items()}
                for task, by_method in found.items()
            },
        },
    )
    write_atomically(store.folder / "rules.png", figures.draw_gains(done))
    by_method = profiles.factors({row.name: row.ratios for row in rows})
    write_atomically(store.folder / "profile.png", profile_figure.draw(by_method, len(done)))
    if not quiet:
        if len(seeds) < FEW_SEEDS:
            steps = max(each.task.steps for each in done)
            print(
                f"{len(seeds)} seeds of {steps} steps: too few to tell methods apart, whatever the tables mark; with few steps "
                "Prodigy has hardly begun and nothing races. This shows that it runs.\n"
            )
        print(
            f"{labels.BEST_OF_GRID}: the point of the grid with the best validation result; another may test better. What the "
            "names mean: docs/results/learning-rate.md\n"
        )
        print(tables.for_terminal(done, _shown(methods, done)))
        print(ranking)
        print(overall)
        print(f"written to {store.folder}: {', '.join(FILES)}")


def summaries(tasks: Iterable[Task], seeds: Sequence[int], store: Store) -> list[TaskSummary]:
    """Returns the summaries of the tasks whose grid is finished."""
    found = [summary.summarise(task, store.by_method(task), seeds) for task in tasks]
    return [each for each in found if each is not None]


def over_tasks(done: Sequence[TaskSummary], store: Store) -> list[across.Row]:
    """Returns the rows of the table over all tasks."""
    return across.rows(done, {s.task.name: store.by_method(s.task) for s in done})


def _carried(done: Sequence[TaskSummary], store: Store) -> dict[str, str]:
    ratios = {s.task.name: log_ratios(mean_errors(s.task, store.by_method(s.task))) for s in done}
    return {
        s.task.name: labels.point(s.task, *chosen[s.task.name])
        for s in done
        if (chosen := carried_over(ratios))
    }


def _shown(methods: Sequence[str], done: Sequence[TaskSummary]) -> list[str]:
    """The methods asked for, and those of another checkout that have runs."""
    there = {entry.name for s in done for entry in s.methods}
    return list(dict.fromkeys([*methods, *(name for name in SEARCHED if name in there)]))

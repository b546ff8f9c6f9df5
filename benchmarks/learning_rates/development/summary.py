"""The variants against the reference, by task: the logarithm of a ratio of errors, and the rates that they held.

The error is the mean of those on validation and test data: nothing is reported of these seeds, so both may be looked at.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..rates import Found, summarised
from ..regret import error
from ..store import Store
from ..summary import Records
from ..task import Task
from ..training import Record
from .reference import REFERENCE


@dataclass(frozen=True)
class Entry:
    """A variant on a task.

    Attributes:
        log_ratio: the logarithm of its mean error over that of the best point of the reference, both from ``seeds``.
        rates: the rates that it held; None where a run found none.
        errors: the error of each seed.
    """

    error: float
    log_ratio: float
    rates: Found | None
    seeds: tuple[int, ...]
    errors: Mapping[int, float]


@dataclass(frozen=True)
class TaskSummary:
    """A task: the best point of the reference, by the mean error over ``seeds``, and the variants."""

    task: Task
    best: str
    error: float
    seeds: tuple[int, ...]
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class Mean:
    """The mean of a variant over the tasks that it has; ``spread`` is the geometric mean of the factors between seeds."""

    log_ratio: float
    spread: float
    tasks: int


def summarise(
    tasks: Iterable[Task], variants: Sequence[str], seeds: Iterable[int], store: Store
) -> list[TaskSummary]:
    """Summarises the tasks whose reference is finished for a seed at least; of every variant the seeds that are there."""
    wanted = tuple(seeds)
    found = [_summary(task, store.by_method(task), variants, wanted) for task in tasks]
    return [each for each in found if each is not None]


def mean(summaries: Iterable[TaskSummary], variant: str) -> Mean | None:
    """Returns the mean over the tasks that the variant has; None for none of them."""
    entries = [each.entries[variant] for each in summaries if variant in each.entries]
    if not entries:
        return None
    spreads = [math.log(e.rates.spread) for e in entries if e.rates is not None and e.rates.n > 1]
    return Mean(
        statistics.mean(e.log_ratio for e in entries),
        math.exp(statistics.mean(spreads)) if spreads else math.nan,
        len(entries),
    )


def behind(
    summaries: Iterable[TaskSummary], variant: str, other: str
) -> tuple[float, float] | None:
    """Compares a variant with another one seed by seed, on the tasks where both have two seeds or more.

    Returns:
        The mean over tasks of log(error / error of the other), and its standard error over seeds; None without such tasks.
    """
    means, variances = [], []
    for each in summaries:
        ours, theirs = each.entries.get(variant), each.entries.get(other)
        if ours is None or theirs is None:
            continue
        seeds = ours.errors.keys() & theirs.errors.keys()
        if len(seeds) > 1:
            logs = [math.log(ours.errors[seed] / theirs.errors[seed]) for seed in seeds]
            means.append(statistics.mean(logs))
            variances.append(statistics.variance(logs) / len(logs))
    if not means:
        return None
    return statistics.mean(means), math.sqrt(sum(variances)) / len(means)


def commits(tasks: Iterable[Task], variants: Iterable[str], store: Store) -> list[str]:
    """Lists the commits of metacurv that the variants' runs were made by; more than one are hardly to be compared."""
    names = set(variants)
    found = {
        str(record.get("commit"))
        for task in tasks
        for method, runs in store.by_method(task).items()
        if method in names
        for record in runs.values()
    }
    return sorted(found)


def to_json(summary: TaskSummary) -> dict[str, Any]:
    """Returns plain numbers for a file."""
    return {
        "task": summary.task.name,
        "steps": summary.task.steps,
        "unit": summary.task.unit,
        "seeds": list(summary.seeds),
        "reference": {"best": summary.best, "error": summary.error},
        "variants": {
            name: {
                "error": entry.error,
                "log_ratio": entry.log_ratio,
                "rates": None if entry.rates is None else vars(entry.rates),
                "seeds": list(entry.seeds),
            }
            for name, entry in summary.entries.items()
        },
    }


def _summary(
    task: Task, records: Records, variants: Sequence[str], wanted: tuple[int, ...]
) -> TaskSummary | None:
    seeds = tuple(s for s in wanted if all(s in records.get(point, {}) for point in REFERENCE))
    if not seeds:
        return None
    best, least = _best(task, records, seeds)
    entries = {}
    for name in variants:
        runs = records.get(name, {})
        if common := tuple(seed for seed in seeds if seed in runs):
            of_variant = _error(task, [runs[seed] for seed in common])
            ratio = math.log(of_variant / _best(task, records, common)[1])
            errors = {seed: _error(task, [runs[seed]]) for seed in common}
            entries[name] = Entry(of_variant, ratio, _rates(runs, common), common, errors)
    return TaskSummary(task, best, least, seeds, entries)


def _best(task: Task, records: Records, seeds: Sequence[int]) -> tuple[str, float]:
    errors = {point: _error(task, [records[point][seed] for seed in seeds]) for point in REFERENCE}
    best = min(errors, key=errors.__getitem__)
    return best, errors[best]


def _error(task: Task, records: Sequence[Record]) -> float:
    return error(task, statistics.mean((run["val_last"] + run["test_last"]) / 2 for run in records))


def _rates(runs: Mapping[int, Record], seeds: Sequence[int]) -> Found | None:
    rates = {seed: runs[seed]["rate"] for seed in seeds}
    return summarised(rates) if all(rates.values()) else None

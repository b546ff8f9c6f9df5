"""The comparison as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..tables import row
from .summary import Entry, Mean, TaskSummary, behind, mean
from .tasks import STANDARD

_AS_IT_IS = "as it is"


def table(summaries: Sequence[TaskSummary], variants: Sequence[str]) -> str:
    """A row a task and the means, a column a variant: log ratio, and the rate that it held with its spread between seeds."""
    shown = [name for name in variants if any(name in each.entries for each in summaries)]
    head = ["task", "seeds", "best of the reference (error)", *shown]
    lines = [row(head), "|" + "---|" * len(head)]
    for each in summaries:
        best = f"{each.best.removeprefix('reference ')} ({each.error:.3g})"
        cells = [_entry(each.entries.get(name), each) for name in shown]
        lines.append(row([each.task.name, str(len(each.seeds)), best, *cells]))
    standard = [each for each in summaries if each.task.name in STANDARD]
    for label, of in (("mean of the standard tasks", standard), ("mean of all", summaries)):
        cells = [_mean(mean(of, name), len(of)) for name in shown]
        lines.append(row([f"**{label}**", "", "", *cells]))
    cells = [_behind(standard, name) for name in shown]
    lines.append(row([f"**standard tasks, less `{_AS_IT_IS}`**, seed by seed", "", "", *cells]))
    return "\n".join(lines) + "\n"


def _behind(summaries: Sequence[TaskSummary], name: str) -> str:
    found = None if name == _AS_IT_IS else behind(summaries, name, _AS_IT_IS)
    return "" if found is None else f"{found[0]:+.3f} ± {found[1]:.3f}"


def _entry(entry: Entry | None, summary: TaskSummary) -> str:
    if entry is None:
        return ""
    short = "" if entry.seeds == summary.seeds else f", {_count(entry.seeds)}"
    return f"{entry.log_ratio:+.3f}{_rates(entry)}{short}"


def _count(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} seed" + ("" if len(seeds) == 1 else "s")


def _rates(entry: Entry) -> str:
    if entry.rates is None:
        return ""
    return f" ({entry.rates.mean:.3g}{_spread(entry.rates.spread)})"


def _spread(spread: float) -> str:
    return "" if math.isnan(spread) else f" ×/÷ {spread:.2f}"


def _mean(found: Mean | None, tasks: int) -> str:
    if found is None:
        return ""
    few = "" if found.tasks == tasks else f", {found.tasks} of {tasks} tasks"
    return f"**{found.log_ratio:+.3f}**{_spread(found.spread)}{few}"

"""The summaries as Markdown, and for a terminal: an overview, a row a task, and for every task a table, a row a method."""

from __future__ import annotations

from collections.abc import Sequence

from metacurv.experiment.statistics import Interval
from metacurv.experiment.text_table import aligned

from .labels import ANY_BASE, BEST_CONSTANT, BEST_OF_GRID, method
from .summary import Entry, TaskSummary, label

_MARKS = {1: " better", 0: "", -1: " worse"}  # where the 95 % interval leaves zero out


def overview(summaries: Sequence[TaskSummary], methods: Sequence[str]) -> str:
    """A column a method of ``methods``, below each mean its paired gain over the best of the grid."""
    head = ["task", ANY_BASE, BEST_CONSTANT, BEST_OF_GRID, *map(method, methods)]
    rows = [row(head), "|" + "---|" * len(head)]
    for summary in summaries:
        by_name = {entry.name: entry for entry in summary.methods}
        cells = [
            f"{summary.task.name}<br><sub>{summary.task.unit}</sub>",
            _with_gain(summary, summary.adam),
            _with_name(summary, summary.best_constant),
            _with_name(summary, summary.best_of_grid),
        ]
        cells += [_with_gain(summary, by_name[name]) if name in by_name else "" for name in methods]
        rows.append(row(cells))
    return "\n".join(rows) + "\n"


def for_terminal(summaries: Sequence[TaskSummary], methods: Sequence[str]) -> str:
    """The overview as aligned text, a block a task."""
    blocks = []
    for summary in summaries:
        by_name = {entry.name: entry for entry in summary.methods}
        unit, grid = summary.task.unit, summary.best_of_grid
        rows = [
            [f"{summary.task.name}: {unit}", "± standard error", f"gain over the {BEST_OF_GRID} [95 %]"],
            [_label(summary, summary.adam), *_plain(summary, summary.adam)],
            [f"{BEST_CONSTANT}: {_label(summary, summary.best_constant)}", *_plain(summary, summary.best_constant)],
            [f"{BEST_OF_GRID}: {_label(summary, grid)}", _mean(summary, grid), ""],
        ]  # fmt: skip
        rows += [
            [method(name), *_plain(summary, by_name[name])] for name in methods if name in by_name
        ]
        blocks.append("\n".join(aligned(rows)))
    return "\n\n".join(blocks) + "\n"


def by_task(summaries: Sequence[TaskSummary]) -> str:
    """Test results, and paired gains with 95 % intervals over the best constant rate and the best of the grid."""
    return "\n".join(_task(summary) for summary in summaries)


def _task(summary: TaskSummary) -> str:
    task, n = summary.task, len(summary.seeds)
    reference = [
        (f"{BEST_CONSTANT}: ", summary.best_constant),
        ("best cosine: ", summary.best_cosine),
        (f"{BEST_OF_GRID}: ", summary.best_of_grid),
    ]
    named = [(_label(summary, summary.adam), summary.adam)]
    named += [(f"{role}{_label(summary, e)}", e) for role, e in reference if e is not None]
    named += [(_label(summary, e), e) for e in sorted(summary.methods, key=lambda e: e.name)]
    head = [
        "method",
        f"test {task.unit}, mean ± standard error of {n} seeds",
        f"gain over the {BEST_CONSTANT}",
        f"gain over the {BEST_OF_GRID}",
        "diverged",
    ]
    rows = [f"### {task.name}, {task.steps} steps", "", row(head), "|" + "---|" * len(head)]
    for name, entry in named:
        gains = [
            "" if entry is over else _gain(summary, summary.gain(entry, over))
            for over in (summary.best_constant, summary.best_of_grid)
        ]
        cells = [name, _mean(summary, entry), *gains, str(entry.diverged)]
        rows.append(row(cells))
    return "\n".join(rows) + "\n"


def row(cells: Sequence[str]) -> str:
    """A row of a Markdown table."""
    return "| " + " | ".join(cells) + " |"


def _label(summary: TaskSummary, entry: Entry) -> str:
    return label(summary.task, entry)


def _digits(summary: TaskSummary) -> int:
    return 3 if summary.task.measure == "loss" else 2


def _mean(summary: TaskSummary, entry: Entry) -> str:
    digits = _digits(summary)
    return f"{entry.mean:.{digits}f} ± {entry.error:.{digits}f}"


def _gain(summary: TaskSummary, gain: Interval) -> str:
    digits = _digits(summary)
    limits = f"[{gain.low:+.{digits}f}, {gain.high:+.{digits}f}]"
    return f"{gain.mean:+.{digits}f} {limits}{_MARKS[gain.side]}"


def _plain(summary: TaskSummary, entry: Entry) -> tuple[str, str]:
    best = summary.best_of_grid
    return _mean(summary, entry), "" if entry is best else _gain(summary, summary.gain(entry, best))


def _with_gain(summary: TaskSummary, entry: Entry) -> str:
    gain = _gain(summary, summary.gain(entry, summary.best_of_grid))
    return f"{_mean(summary, entry)}<br><sub>{gain}</sub>"


def _with_name(summary: TaskSummary, entry: Entry) -> str:
    return f"{_mean(summary, entry)}<br><sub>{_label(summary, entry)}</sub>"

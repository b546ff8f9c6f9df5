"""The summaries as Markdown, and for a terminal: an overview, a row a task, and for every task a table, a row a method."""

from __future__ import annotations

from collections.abc import Sequence

from ..statistics import Interval
from ..text_table import aligned
from .grid import SGD_FACTOR
from .summary import Entry, TaskSummary

_MARKS = {1: " better", 0: "", -1: " worse"}  # where the 95 % interval leaves zero out


def overview(summaries: Sequence[TaskSummary], methods: Sequence[str]) -> str:
    """A column a method of ``methods``, below each mean its paired gain over the best of the grid."""
    head = ["task", "untuned 1e-3", "best constant rate", "best of the grid", *methods]
    rows = [_row(head), "|" + "---|" * len(head)]
    for summary in summaries:
        by_name = {entry.name: entry for entry in summary.methods}
        cells = [
            f"{summary.task.name}<br><sub>{summary.task.unit}</sub>",
            _with_gain(summary, summary.adam),
            _with_name(summary, summary.best_constant),
            _with_name(summary, summary.best_of_grid),
        ]
        cells += [_with_gain(summary, by_name[name]) if name in by_name else "" for name in methods]
        rows.append(_row(cells))
    return "\n".join(rows) + "\n"


def for_terminal(summaries: Sequence[TaskSummary], methods: Sequence[str]) -> str:
    """The overview as aligned text, a block a task."""
    blocks = []
    for summary in summaries:
        by_name = {entry.name: entry for entry in summary.methods}
        unit, grid = summary.task.unit, summary.best_of_grid
        rows = [
            [f"{summary.task.name}: {unit}{_note(summary)}", "± standard error", "gain over best of grid [95 %]"],
            ["untuned 1e-3", *_plain(summary, summary.adam)],
            [f"best constant rate: {_point(summary.best_constant)}", *_plain(summary, summary.best_constant)],
            [f"best of the grid: {_point(grid)}", _mean(summary, grid), ""],
        ]  # fmt: skip
        rows += [[name, *_plain(summary, by_name[name])] for name in methods if name in by_name]
        blocks.append("\n".join(aligned(rows)))
    return "\n\n".join(blocks) + "\n"


def by_task(summaries: Sequence[TaskSummary]) -> str:
    """Test results, and paired gains with 95 % intervals over the best constant rate and the best of the grid."""
    return "\n".join(_task(summary) for summary in summaries)


def _task(summary: TaskSummary) -> str:
    task, n = summary.task, len(summary.seeds)
    reference = [
        ("untuned", summary.adam),
        ("best constant", summary.best_constant),
        ("best cosine", summary.best_cosine),
        ("best of the grid", summary.best_of_grid),
    ]
    named = [(f"{role}: {_point(e)}", e) for role, e in reference if e is not None]
    named += [(entry.label, entry) for entry in sorted(summary.methods, key=lambda e: e.name)]
    head = [
        f"method{_note(summary)}",
        f"test {task.unit}, mean ± standard error of {n} seeds",
        "gain over the best constant rate",
        "gain over the best of the grid",
        "diverged",
    ]
    rows = [f"### {task.name}", "", _row(head), "|" + "---|" * len(head)]
    for name, entry in named:
        gains = [
            "" if entry is over else _gain(summary, summary.gain(entry, over))
            for over in (summary.best_constant, summary.best_of_grid)
        ]
        rows.append(_row([name, _mean(summary, entry), *gains, str(entry.diverged)]))
    return "\n".join(rows) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _point(entry: Entry) -> str:
    return entry.label.removeprefix("grid ")


def _note(summary: TaskSummary) -> str:
    """Explains the names of rates."""
    if summary.task.base != "sgd":
        return ""
    return f" (of SGD the rates are {SGD_FACTOR:g} times those that are named)"


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
    return f"{_mean(summary, entry)}<br><sub>{_point(entry)}{_note(summary)}</sub>"

"""The names of the methods wherever people see them; results keep the names that the runs were stored under."""

from __future__ import annotations

from .directional import RECIPROCAL_ALPHA
from .grid import DEFAULT_RATE, GRID, SGD_FACTOR
from .task import Task

BEST_CONSTANT, BEST_OF_GRID = "best constant rate", "best of the grid"
# Where a column or a rank is about tasks of several bases.
ANY_BASE = f"base, lr={DEFAULT_RATE:g} (SGD: {SGD_FACTOR * DEFAULT_RATE:g})"
CARRIED_OVER = "base, one setting carried over"
_POINTS = {point.name: point for point in GRID}
_LABELS = {"reciprocal": f"reciprocal, alpha={RECIPROCAL_ALPHA:g}"}


def method(name: str) -> str:
    """The label of a method that is no point of the grid."""
    return _LABELS.get(name, name)


def at_rate(task: Task, rate: float) -> str:
    """The label of the task's base optimizer at a constant rate."""
    return f"{task.base_name}, lr={rate:g}"


def point(task: Task, name: str, which: str) -> str:
    """The label of a point of the grid, with the rate that ``task`` has there; ``which``: the iterate, "last" or "average"."""
    found = _POINTS[name]
    parts = [at_rate(task, found.peak(task))]
    if not found.is_constant:
        parts.append(found.schedule)
    if found.warm_up:
        parts.append("warm-up")
    if which == "average":
        parts.append("averaged")
    return ", ".join(parts)


def ranked(name: str) -> str:
    """The label of a method, or of the untuned point of the grid, where several tasks are taken together."""
    return ANY_BASE if name in _POINTS else method(name)

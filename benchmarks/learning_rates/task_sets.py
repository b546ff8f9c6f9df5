"""The two sets of tasks, and a task by its name."""

from __future__ import annotations

from .new_tasks import TASKS_NEW
from .task import Task
from .tasks import TASKS

SETS: dict[str, dict[str, Task]] = {"standard": TASKS, "new": TASKS_NEW}


def find(name: str) -> Task:
    """Returns the task of this name, of whichever set."""
    return next(tasks[name] for tasks in SETS.values() if name in tasks)

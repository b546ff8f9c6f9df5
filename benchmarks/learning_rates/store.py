"""Finished runs, a line of JSON each, one file a task: appended to, so that a kill loses no more than the run it interrupts."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from metacurv.experiment.storage import strict

from .plan import Run
from .task import Task
from .training import Record


class Store:
    """The files under ``folder``, which is made where it is missing."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._records: dict[Run, Record] = {}
        for path in sorted(folder.glob("*.jsonl")):
            self._read(path)

    def __contains__(self, run: Run) -> bool:
        return run in self._records

    def get(self, run: Run) -> Record | None:
        """The record of a finished run."""
        return self._records.get(run)

    def record(self, run: Run) -> Record:
        """The record of a run that is known to be finished."""
        return self._records[run]

    def add(self, run: Run, record: Record) -> None:
        """Keeps a finished run."""
        path = self.folder / f"{run.task}.jsonl"
        whole = not path.exists() or path.read_bytes()[-1:] in (b"", b"\n")
        with path.open("a", encoding="utf-8") as file:
            file.write(("" if whole else "\n") + json.dumps(strict(record), allow_nan=False) + "\n")
        self._records[run] = record

    def by_method(self, task: Task) -> dict[str, dict[int, Record]]:
        """Records of one task at its number of steps, with the user's lr at its default: method -> seed -> record."""
        found: dict[str, dict[int, Record]] = defaultdict(dict)
        for run, record in self._records.items():
            if run.task == task.name and run.steps == task.steps and run.is_plain:
                found[run.method][run.seed] = record
        return dict(found)

    def _read(self, path: Path) -> None:
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
                run = Run(
                    record["task"],
                    record["method"],
                    record["seed"],
                    record["steps"],
                    record["user_lr"],
                )
            except (ValueError, KeyError, TypeError):
                continue  # cut short by a kill; the run is done again
            self._records[run] = record

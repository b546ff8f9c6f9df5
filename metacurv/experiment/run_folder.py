"""The folder of one experiment: its files, who may write to it, how a restart finds its place."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from . import storage
from .config import Config, Run
from .training import Row

COLUMNS = ("step", "seconds", "train_loss", "test_loss", "train_acc", "test_acc", "lr", "trace")
KEY_COLUMNS = ("seed", "method", "alpha")
REPORTS = ("metrics.csv", "summary.json", "report.txt", "loss_comparison.png")


class FolderError(RuntimeError):
    """The run folder cannot be used for this command."""


class RunFolder:
    """``root`` holds the results for people, ``root/parts`` finished runs and a checkpoint."""

    def __init__(self, root: Path, config: Config) -> None:
        self.root, self.config, self.parts = root, config, root / "parts"

    @contextmanager
    def opened(self, *, fresh: bool) -> Iterator[None]:
        """Create the folder, lock it, tidy up after a kill, and check whose results it holds.

        Raises:
            FolderError: another process writes here, or the folder holds results of another
                configuration, or it cannot be written.
        """
        try:
            self.parts.mkdir(parents=True, exist_ok=True)
            lock = filelock.FileLock(self.parts / ".lock")
            lock.acquire(timeout=0)  # the system frees it when its holder dies
        except filelock.Timeout:
            raise FolderError(f"argument --out: another process writes to {self.root}") from None
        except OSError as error:
            raise FolderError(f"argument --out: cannot write to {self.root}: {error}") from error
        try:
            for folder in (self.root, self.parts):
                storage.remove_leftovers(folder)
            self._claim(fresh=fresh)
            yield
        finally:
            lock.release()

    def _clear(self) -> None:
        """Remove what this experiment wrote, and nothing else that may lie in the folder."""
        results = [self.root / name for name in (*REPORTS, "environment.json", "config.json")]
        for path in (*self.parts.glob("*.csv"), *self.parts.glob("*.checkpoint"), *results):
            path.unlink(missing_ok=True)

    def _claim(self, *, fresh: bool) -> None:
        """See whose results the folder holds, and make it this configuration's where it is free."""
        path, wanted = self.root / "config.json", self.config.to_json()
        found = storage.read_json(path)
        if found is not None and found.keys().isdisjoint(wanted):
            raise FolderError(
                f"argument --out: {path} belongs to something else; choose another folder"
            )
        if fresh:
            self._clear()
        elif found is not None:
            self._check(found, wanted)
        elif path.exists() or any(self.parts.glob("*.c*")):
            raise FolderError(
                f"argument --out: {self.root} holds results, and its config.json is missing or "
                "damaged; choose another folder, or --fresh to discard the results"
            )
        storage.write_json(path, wanted)

    def _check(self, found: dict[str, Any], wanted: dict[str, Any]) -> None:
        differences = [
            f"  {name}: {found.get(name, 'absent')} there, {wanted.get(name, 'absent')} asked for"
            for name in sorted({*found, *wanted})
            if found.get(name) != wanted.get(name)
        ]
        if differences:
            raise FolderError(
                f"argument --out: {self.root} holds the results of another configuration\n"
                + "\n".join(differences)
                + "\nChoose another folder, or --fresh to discard those results."
            )

    def rows(self, run: Run) -> list[Row] | None:
        """The evaluations of a finished run, or None where there is none that is whole."""
        try:
            text = (self.parts / f"{run.name}.csv").read_text(encoding="utf-8")
            records = list(csv.DictReader(io.StringIO(text), strict=True))
            rows = [as_row(record) for record in records]
        except (OSError, ValueError, KeyError, TypeError, csv.Error):
            return None
        return rows if [row["step"] for row in rows] == list(self.config.eval_steps) else None

    def finish(self, run: Run, rows: Sequence[Row]) -> None:
        """Keep a finished run's evaluations; its checkpoint has served."""
        storage.write_atomically(self.parts / f"{run.name}.csv", as_csv(COLUMNS, rows))
        self._checkpoint(run).unlink(missing_ok=True)

    def write_checkpoint(self, run: Run, state: dict[str, Any]) -> None:
        """Keep the state of a begun run."""
        storage.write_checkpoint(self._checkpoint(run), state)

    def read_checkpoint(self, run: Run) -> dict[str, Any] | None:
        """The state of a begun run, or None where there is none (or it is damaged)."""
        return storage.read_checkpoint(self._checkpoint(run))

    def _checkpoint(self, run: Run) -> Path:
        return self.parts / f"{run.name}.checkpoint"

    def write_metrics(self) -> None:
        """Gather the finished runs in metrics.csv."""
        gathered = []
        for run in sorted(
            self.config.runs, key=lambda run: (run.seed, self.config.methods.index(run.method))
        ):
            key = {"seed": run.seed, "method": run.method.name, "alpha": run.method.alpha}
            gathered += [{**key, **row} for row in self.rows(run) or []]
        storage.write_atomically(
            self.root / "metrics.csv", as_csv((*KEY_COLUMNS, *COLUMNS), gathered)
        )


def as_row(record: dict[str, str]) -> Row:
    """The numbers of one evaluation."""
    return {name: int(record[name]) if name == "step" else float(record[name]) for name in COLUMNS}


def as_csv(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str:
    """Floats by ``repr``, which reads back exactly; None as an empty field."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()

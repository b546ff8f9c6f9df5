"""Runs the sweep for safety and keeps it, a line of JSON a case, so that the same command goes on where it was killed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm  # type: ignore[import-untyped]

from metacurv.experiment.storage import strict, write_atomically

from . import safety, safety_table, workers
from .safety import Case
from .training import Record

NAME = "safety.jsonl"


def run(
    tasks: Sequence[str],
    seeds: Sequence[int],
    folder: Path,
    jobs: int,
    *,
    progress: bool,
    train: bool = True,
) -> int:
    """Trains what ``folder`` lacks, unless ``train`` is False, and writes the table of all it has. Returns: the exit status.

    The status is 1 where a run ends above the loss of its first step.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / NAME
    records = _read(path)
    if train:
        todo = [case for case in safety.cases(tasks, seeds) if case not in records]
        with path.open("a", encoding="utf-8") as file:
            # A kill may have left half a line.
            file.write("" if _ends_whole(path) else "\n")
            results = workers.finished(todo, jobs, safety.run)
            for case, record in tqdm(results, total=len(todo), desc="safety", disable=not progress):
                file.write(json.dumps(strict(record), allow_nan=False) + "\n")
                file.flush()
                records[case] = record
    if not records:
        print(f"{path} has no runs")
        return 1
    text = safety_table.table(list(records.values()))
    write_atomically(folder / "safety.md", text)
    print(text)
    print(f"written to {folder}: {NAME}, safety.md")
    return 0 if all(map(safety_table.is_safe, records.values())) else 1


def _read(path: Path) -> dict[Case, Record]:
    found: dict[Case, Record] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
            batch = record["batch"]
            case = Case(
                record["task"],
                batch if batch == safety.FULL else int(batch),
                record["base"],
                record["seed"],
            )
        except (ValueError, KeyError, TypeError):
            continue  # cut short by a kill; the case is run again
        found[case] = record
    return found


def _ends_whole(path: Path) -> bool:
    return path.read_bytes()[-1:] in (b"", b"\n")

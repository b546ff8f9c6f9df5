"""Report, summary and picture anew from a finished experiment's config.json and metrics.csv: nothing is trained."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from . import results_files, storage
from .config import Config
from .results import Curves
from .run_folder import FolderError, as_csv, as_row

METRICS = "metrics.csv"
_EARLIER_NAMES = {"MetaCurvatureLR": "reciprocal"}  # of methods, in results of earlier versions


def redraw(root: Path) -> None:
    """Write everything that follows from the numbers in ``root``, and print it in short.

    Raises:
        FolderError: ``root`` lacks a file, or what the file should hold.
    """
    stored = storage.read_json(root / "config.json")
    if stored is None:
        raise FolderError(f"argument --redraw: {root} has no config.json that can be read")
    try:
        config = Config.from_json(stored)
        text = (root / METRICS).read_text(encoding="utf-8")
        records = list(csv.DictReader(io.StringIO(text), strict=True))
        for record in records:
            record["method"] = _EARLIER_NAMES.get(record["method"], record["method"])
        curves = _curves(config, records)
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise FolderError(
            f"argument --redraw: {root} does not hold a whole experiment: {error!r}"
        ) from error
    storage.write_atomically(root / METRICS, as_csv(list(records[0]), records))
    results_files.write(root, config, curves, redraw=True)
    results_files.show(root, config, curves)


def _curves(config: Config, records: list[dict[str, str]]) -> list[Curves]:
    found = []
    for method in config.methods:
        alpha = "" if method.alpha is None else repr(method.alpha)
        seeds = [
            [
                as_row(record)
                for record in records
                if (record["method"], record["alpha"], record["seed"])
                == (method.name, alpha, str(seed))
            ]
            for seed in range(config.seeds)
        ]
        if any([row["step"] for row in rows] != list(config.eval_steps) for rows in seeds):
            raise ValueError(f"evaluations of {method.label} are missing in {METRICS}")
        found.append(Curves.from_rows(method, seeds))
    return found

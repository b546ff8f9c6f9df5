"""The files that a finished experiment leaves for people, and what it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from . import figure, report, sentences, storage
from .config import Config
from .results import Curves
from .text_table import paragraph

PICTURE, REPORT, SUMMARY = "loss_comparison.png", "report.txt", "summary.json"


def write(root: Path, config: Config, curves: Sequence[Curves], *, redraw: bool) -> None:
    """Write the report, the summary and, where there is none or ``redraw`` asks for it, the picture."""
    storage.write_json(root / SUMMARY, report.summary(config, curves))
    storage.write_atomically(root / REPORT, f"{report.text(config, curves)}\n")
    if redraw or not (root / PICTURE).exists():
        storage.write_atomically(root / PICTURE, figure.draw(config, curves))


def show(root: Path, config: Config, curves: Sequence[Curves]) -> None:
    """Print the table and at most five sentences; the report has the rest."""
    told = [
        *sentences.results(config, curves),
        sentences.where(config, root / PICTURE, root / REPORT),
    ]
    print("\n".join(["", *report.table(config, curves), ""]))
    for sentence in told:
        print("\n".join(paragraph(sentence, report.WIDTH)))

"""The table of roads on docs/develop/architecture.md, from the stored results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.page_block import ROOT
from benchmarks.road_isa import ISA_ROADS
from benchmarks.road_list import ROADS
from benchmarks.table import duration, number

RESULT = ROOT / "benchmarks" / "results" / "roads.json"
PAGE = ROOT / "docs" / "develop" / "architecture.md"
BLOCK = "roads"
# How many times as fast a road has to make a line of the speed table.
EARNS = 1.3

HEAD = (
    "| road | line | with it | without | times as fast (95 % interval) | verdict |",
    "|---|---|---|---|---|---|",
)


def page_block(stored: Mapping[str, Any]) -> str:
    """Shows each road on the lines where it earns most and least, and what roads and results there are."""
    text = [*HEAD]
    for name, road in stored.items():
        verdict = "kept" if name in ROADS or name in ISA_ROADS else "went"
        for row in shown(road["rows"]):
            text.append(f"| `{name}` | {cells(row)} | {verdict} |")
    text.append("")
    text += [
        f"- `{name}`: {road['what']} Measured at `{road['commit']}`, {road['date']}: {road['cpu']}, {road['kernels']} "
        f"kernels, torch {road['torch']}."
        for name, road in stored.items()
    ]
    return "\n".join(text)


def shown(rows: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Returns the best and the worst of the lines that users meet; else of all that were measured; else one that was not."""
    measured = [row for row in rows if row["ratio"] is not None]
    met = [row for row in measured if row["in_table"] and not row["note"]]
    ordered = sorted(met or measured, key=lambda row: float(row["ratio"]))
    if not ordered:
        return list(rows[:1])
    unmet = [] if met else [row for row in rows if row["ratio"] is None][:1]
    return [*unmet, ordered[-1], *ordered[: len(ordered) > 1]]


def cells(row: Mapping[str, Any]) -> str:
    """The cells of one line."""
    line = row["line"] if row["in_table"] else f"{row['line']} (not in the speed table)"
    if row["ratio"] is None:
        return f"{line} | | | {row['note']}"
    line += f"; {row['note']}" if row["note"] else ""
    ratio = number(row["ratio"])
    bold = f"**{ratio}**" if row["ratio"] >= EARNS else ratio
    interval = f"{number(row['low'])} to {number(row['high'])}"
    return (
        f"{line} | {duration(row['with_s'])} | {duration(row['without_s'])} | {bold} ({interval})"
    )

"""The table of planted faults and of what saw each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

KEPT = Path(__file__).resolve().parent / "mutants.md"
NOTHING = "**nothing**"
_ROW = re.compile(r"\| (\S+):(\d+) \| (.+?) \| `(.*)` \| (.+) \|")


@dataclass(frozen=True)
class Row:
    """One fault. ``caught_by``: "" for nothing."""

    file: str
    line: int
    kind: str
    code: str
    caught_by: str


def to_markdown(rows: Sequence[Row]) -> str:
    """With what each check caught on top."""
    rows = sorted(rows, key=lambda row: (row.file, row.line))
    counts = Counter((row.caught_by or NOTHING).partition(":")[0] for row in rows)
    caught = ", ".join(f"{n} by {name}" for name, n in counts.most_common())
    lines = [
        "# Planted faults, and which check saw each first",
        "",
        f"{len(rows)} faults: {caught}. Written by `python tests/cuda/emulation/mutants.py --keep`, which says what they are;",
        'a signal or "without an end" means that the process died or hung under that check.',
        "",
        "| place | fault | line | caught by |",
        "|---|---|---|---|",
    ]
    for row in rows:
        code = row.code.replace("|", "\\|")
        lines.append(
            f"| {row.file}:{row.line} | {row.kind} | `{code}` | {row.caught_by or NOTHING} |"
        )
    return "\n".join(lines) + "\n"


def read(path: Path) -> list[Row]:
    """The rows of such a table; none where there is no file."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        if match := _ROW.fullmatch(line):
            file, number, kind, code, seen = match.groups()
            code = code.replace("\\|", "|")
            found.append(Row(file, int(number), kind, code, "" if seen == NOTHING else seen))
    return found

"""The verdicts of the sweep for safety as Markdown."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .safety import BATCH_SIZES
from .tables import row
from .training import Record

_IDLE = 0.9


def is_safe(record: Record) -> bool:
    """True where the loss at the end is a number, and no higher than at the first step."""
    last = record["last"]
    return last is not None and math.isfinite(last) and last <= record["first"]


def ratio(record: Record) -> float:
    """Returns the loss at the end over that at the first step; infinite where it is no number."""
    last = record["last"]
    return math.inf if last is None or not math.isfinite(last) else last / record["first"]


def table(records: Sequence[Record], worst: int = 10) -> str:
    """Violations by task and batch size, and the ``worst`` cases, by the ratio of the last loss to the first."""
    tasks = list(dict.fromkeys(record["task"] for record in records))
    sizes = [str(size) for size in BATCH_SIZES]
    unsafe, idle = (sum(not is_safe(r) for r in records), sum(ratio(r) > _IDLE for r in records))
    lines = [
        f"{unsafe} of {len(records)} runs end above the loss of their first step; {idle} above {_IDLE:g} of it, having learnt "
        "next to nothing.",
        "",
        row(["task", *(f"batch {size}" for size in sizes)]),
        "|---" * (1 + len(sizes)) + "|",
    ]
    for task in tasks:
        cells = []
        for size in sizes:
            of = [r for r in records if r["task"] == task and r["batch"] == size]
            cells.append(f"{sum(not is_safe(r) for r in of)} of {len(of)}")
        lines.append(row([task, *cells]))
    head = ["largest ratios", "batch", "base", "seed", "steps", "last loss / first"]
    lines += ["", row(head), "|---" * len(head) + "|"]
    for r in sorted(records, key=ratio, reverse=True)[:worst]:
        about = [r["task"], r["batch"], r["base"], str(r["seed"]), str(r["steps"])]
        lines.append(row([*about, f"{ratio(r):.4f}"]))
    return "\n".join(lines) + "\n"

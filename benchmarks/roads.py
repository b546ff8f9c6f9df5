"""Measures what each road earns: an alternative way to the same number, with it and without it.

    python -m benchmarks.roads [--only NAME ...] [--repeats N] [--output FILE] [--page]

A road stays if a user would meet it and it makes a line of the speed table at least 1.3 times as fast. The results go into
benchmarks/results/roads.json, road by road, and from there into docs/develop/architecture.md. A road that is gone keeps its
rows: `git checkout COMMIT && python -m benchmarks.roads --only NAME` measures it again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import metacurv
from benchmarks.page_block import ROOT, write_block
from benchmarks.process import settle
from benchmarks.road_case import Row, measure
from benchmarks.road_isa import ISA_ROADS, measure_isa
from benchmarks.road_list import ROADS
from benchmarks.road_page import BLOCK, PAGE, RESULT, page_block
from benchmarks.table import duration

NAMES = (*ROADS, *ISA_ROADS)


def rows_of(name: str, repeats: int) -> Iterator[Row]:
    """Measures a road, line by line."""
    if name in ISA_ROADS:
        yield from measure_isa(name, repeats)
        return
    for case in ROADS[name]():
        yield case if isinstance(case, Row) else measure(case, repeats)


def what(name: str) -> str:
    """Says what a road is, and against what it is measured."""
    if name in ISA_ROADS:
        return f"Kernels for {name}, against those for {ISA_ROADS[name]}."
    return (ROADS[name].__doc__ or "").partition("\n")[0]


def where() -> dict[str, str]:
    """Says what was measured, and on what."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"]
    commit = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return {
        "commit": commit.stdout.strip(),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "torch": torch.__version__,
        "cpu": f"{cpu['model name']}, family {cpu['cpu family']}, model {cpu['model']}",
        "kernels": str(metacurv.build_info()["cpu_isa"]),
        "compiler": str(metacurv.build_info()["compiler"]),
    }


def show(row: Row) -> None:
    told = ""
    if row.with_s is not None and row.without_s is not None:
        times = f"{duration(row.with_s)} / {duration(row.without_s)}"
        told = f"{row.ratio:6.2f} ({row.low:.2f} to {row.high:.2f})  {times}"
    print(f"  {row.line:66} {told:46} {row.note}", flush=True)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", choices=NAMES, default=NAMES, metavar="NAME")
    parser.add_argument(
        "--repeats", type=int, default=21, help="turns on each side of a line (default: 21)"
    )
    parser.add_argument("--output", type=Path, default=RESULT, help="the results to add to")
    parser.add_argument(
        "--page",
        action="store_true",
        help="measure nothing; write the stored results into the page",
    )
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    settle()
    stored: dict[str, Any] = (
        json.loads(options.output.read_text()) if options.output.exists() else {}
    )
    for name in () if options.page else options.only:
        print(f"{name}: {what(name)}")
        rows = []
        for row in rows_of(name, options.repeats):
            show(row)
            rows.append(row.as_dict())
        if name in stored and all(row["ratio"] is None for row in rows):
            print("  what another machine measured stays")
            continue
        stored[name] = {"what": what(name), **where(), "rows": rows}
        options.output.write_text(json.dumps(stored, indent=1) + "\n")
    if options.output == RESULT:
        write_block(PAGE, BLOCK, page_block(stored))
    return 0


if __name__ == "__main__":
    sys.exit(main())

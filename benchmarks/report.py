"""Turns saved benchmark results into the speed table, its picture, and the generated part of docs/results/speed.md.

Measure first, in half an hour on a quiet machine:

    pytest benchmarks --benchmark-json=benchmarks/results/latest.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))  # run by its path, python sees this folder alone

from benchmarks.estimate_lines import is_race  # noqa: E402
from benchmarks.on_device import SMALL, run, why_not  # noqa: E402
from benchmarks.page_block import ROOT, marks, write_block  # noqa: E402
from benchmarks.plot import draw  # noqa: E402
from benchmarks.table import (  # noqa: E402
    PROMISES,
    comparisons,
    lines_table,
    machine,
    others_table,
    rows,
)

RESULTS = HERE / "results"
PAGE = ROOT / "docs" / "results" / "speed.md"
NAME = "speed"


def saved_results(folder: Path = RESULTS) -> list[Path]:
    """The results of pytest-benchmark in ``folder``, by when they were measured."""
    found = {path: json.loads(path.read_text()) for path in folder.glob("*.json")}
    results = [path for path, content in found.items() if "machine_info" in content]
    if not results:
        raise FileNotFoundError(
            f"no results of pytest-benchmark in {folder}; measure first (see --help)"
        )
    return sorted(results, key=lambda path: found[path]["datetime"])


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="JSON",
        help="results of pytest-benchmark; a later one replaces what it measured again (default: all in "
        "benchmarks/results)",
    )
    parser.add_argument(
        "--update-page",
        action="store_true",
        help=f"replace what stands in docs/results/speed.md between {' and '.join(marks(NAME))}",
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="exit with 1 where a promise is not kept or not measured, known shortfalls aside",
    )
    parser.add_argument(
        "--without-races",
        action="store_true",
        help="leave out the promises about times to an equal error, which take a quarter of an hour to measure",
    )
    parser.add_argument(
        "--device",
        choices=["cuda", "cpu"],
        help="instead, measure every op and whole training steps there, now, against torch's own operations; prints a "
        "table and writes benchmarks/results/DEVICE.json. For a GPU there is nothing else to run first",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="with --device: write there instead",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="with --device: small sizes and hardly any time, only to see that all of it runs",
    )
    parser.add_argument(
        "--slack",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="with --check: let a promise be missed by this share, for machines that are not quiet (default: 0)",
    )
    return parser.parse_args(arguments)


def load(path: Path) -> dict[str, Any]:
    loaded = json.loads(path.read_text())
    if not isinstance(loaded, dict):
        raise ValueError(f"{path} is not a result of pytest-benchmark")
    return loaded


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    if options.device:
        if why := why_not(options.device):
            print(f"report.py: --device {options.device}: {why}", file=sys.stderr)
            return 2
        out = options.output or RESULTS / f"{options.device}.json"
        return run(options.device, out, **(SMALL if options.small else {}))
    try:
        paths = options.results or saved_results()
        results = [load(path) for path in paths]
        found = comparisons(results)
    except (OSError, ValueError) as error:
        print(f"report.py: {error}", file=sys.stderr)
        return 2
    made = rows(found, [line for line in PROMISES if not (options.without_races and is_race(line))])
    picture = paths[-1].parent / "speed.png"
    draw(made, picture)
    print(lines_table(made), others_table(found), machine(results[-1]), sep="\n\n")
    print(f"\npicture: {picture}")
    if options.update_page:
        try:
            write_block(PAGE, NAME, page_block(results, picture))
        except (OSError, ValueError) as error:
            print(f"report.py: {error}", file=sys.stderr)
            return 2
    if not options.check:
        return 0
    failed = 0
    for row in made:
        if row.kept:
            continue
        name = f"{row.line.text}, {row.line.other}"
        if row.measured is None:
            failed += 1
            print(f"not measured: {name}", file=sys.stderr)
        elif row.line.shortfall:
            print(f"not kept, a known shortfall: {name} ({row.line.shortfall})", file=sys.stderr)
        elif row.line.holds(row.measured.value, options.slack):
            print(f"not kept, within the slack: {name}", file=sys.stderr)
        else:
            failed += 1
            print(f"not kept: {name}", file=sys.stderr)
    return 1 if failed else 0


def page_block(results: Sequence[dict[str, Any]], picture: Path) -> str:
    """The generated part of the page: the promises, where they were measured, and what was compared without one."""
    found = comparisons(results)
    shown = os.path.relpath(picture, PAGE.parent)
    return f"""
{lines_table(rows(found))}

{machine(results[-1])}

![Each ratio with its interval, beside what was promised]({shown})

## Comparisons without a promise

{others_table(found)}
"""


if __name__ == "__main__":
    sys.exit(main())

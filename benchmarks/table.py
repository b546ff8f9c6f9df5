"""Saved results -> the rows of the table, and their Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.estimate_lines import ESTIMATE_LINES
from benchmarks.lines import LINES, Kind, Line

PROMISES = (*ESTIMATE_LINES, *LINES)

# extra_info of a benchmark that compares, by the name of its comparison
Comparisons = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Measured:
    """What decides a line: ``value`` with its 95 % interval (None where there is no noise), both sides in words."""

    value: float
    interval: tuple[float, float] | None
    ours: str
    other: str


@dataclass(frozen=True)
class Row:
    """A line and its measurement, the worst of its keys; None where one of them is missing."""

    line: Line
    measured: Measured | None

    @property
    def kept(self) -> bool:
        return self.measured is not None and self.line.holds(self.measured.value)


def comparisons(results: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """From the JSON of one run or more; what a later run measured again replaces what was there.

    Raises:
        ValueError: not a file of pytest-benchmark.
    """
    found: dict[str, Mapping[str, Any]] = {}
    for result in results:
        if "benchmarks" not in result:
            raise ValueError("not a result of pytest-benchmark: it has no 'benchmarks'")
        for benchmark in result["benchmarks"]:
            info = benchmark["extra_info"]
            if info.get("comparison"):
                found[info["comparison"]] = info
    return found


def measure(kind: Kind, info: Mapping[str, Any]) -> Measured:
    if kind == "copies":
        memory = info["memory"]
        ours, other = (f"{memory[side] / 1e6:.2f} MB" for side in ("ours_bytes", "other_bytes"))
        return Measured(memory["copies"], None, ours, other)
    paired = info["paired"]
    ours, other = duration(paired["ours_s"]), duration(paired["other_s"])
    if kind == "faster":
        return Measured(paired["speedup"], (paired["low"], paired["high"]), ours, other)
    interval = (1 / paired["high"], 1 / paired["low"])
    return Measured(1 / paired["speedup"], interval, ours, other)


def rows(found: Comparisons, lines: Iterable[Line] = PROMISES) -> list[Row]:
    made = []
    for line in lines:
        if any(name not in found for name in line.keys):
            made.append(Row(line, None))
            continue
        worst = min if line.kind == "faster" else max
        measurements = [measure(line.kind, found[name]) for name in line.keys]
        made.append(Row(line, worst(measurements, key=lambda m: m.value)))
    return made


def duration(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if seconds * scale >= 1:
            return f"{seconds * scale:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def number(value: float) -> str:
    """Three digits, four from 0.9 to 1.1, where they decide."""
    return f"{value:.3f}" if 0.9 <= value < 1.1 else f"{value:.3g}"


def ratio(kind: Kind, measured: Measured) -> str:
    words = {"faster": "× as fast", "time": "× the time", "copies": "× the parameters"}[kind]
    if measured.interval is None:
        more = "less" if measured.value < 0 else "more"
        return f"{number(abs(measured.value))} {words} {more}"
    low, high = measured.interval
    return f"{number(measured.value)} {words} ({number(low)} to {number(high)})"


def lines_table(made: Iterable[Row]) -> str:
    text = [
        "| what | metacurv | against | takes | ratio (95 % interval) | promise | kept |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in made:
        line, measured = row.line, row.measured
        cells = (
            ("", "", "not measured")
            if measured is None
            else (measured.ours, measured.other, ratio(line.kind, measured))
        )
        text.append(
            f"| {line.text} | {cells[0]} | {line.other} | {cells[1]} | {cells[2]} | {line.promise()} "
            f"| {'yes' if row.kept else '**no**'} |"
        )
    return "\n".join(text)


def others_table(found: Comparisons, lines: Iterable[Line] = PROMISES) -> str:
    """What was compared without a promise; traces with the standard error of both sides."""
    promised = {name for line in lines for name in line.keys}
    text = [
        "| comparison | metacurv | other | metacurv is | standard error of other |",
        "|---|---|---|---|---|",
    ]
    for name, info in sorted(found.items()):
        if name in promised or "paired" not in info:
            continue
        measured = measure("faster", info)
        error = "" if info.get("stderr") is None else f"{info['stderr']:.2g}"
        text.append(
            f"| {name} | {measured.ours} | {measured.other} | {ratio('faster', measured)} | {error} |"
        )
    return "\n".join(text)


def machine(result: Mapping[str, Any]) -> str:
    """One line on where a result comes from."""
    info = result["machine_info"]
    built = info["metacurv"]
    peers = ", ".join(f"{name} {version}" for name, version in info["peers"].items())
    return (
        f"{info['cpu']['brand_raw']}, one thread, {built['cpu_isa']} kernels by {built['compiler']}; "
        f"Python {info['python_version']}, torch {info['torch']}, metacurv {built['version']}, {peers}; "
        f"{result['datetime'][:10]}."
    )

"""benchmarks/roads.py: the two sides of a case, and what the page shows of stored results."""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def case(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return import_module("benchmarks.road_case")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return import_module("benchmarks.road_page")


def work(case: ModuleType, off: int, result: float = 1.0) -> Any:
    """A case whose side without the road adds up ``off`` numbers instead of 20 000, and then gives ``result``."""
    product = SimpleNamespace(numbers=20_000, result=1.0)

    def call() -> float:
        sum(range(product.numbers))
        return product.result

    switch = case.patched((product, "numbers", off), (product, "result", result))
    return case.Case("adding up", lambda: call, switch)


def test_a_road_that_does_a_third_of_the_work(case: ModuleType) -> None:
    row = case.measure(work(case, 60_000), repeats=5)
    assert 2 < row.ratio < 4.5
    assert row.low <= row.ratio <= row.high
    assert row.difference == 0


def test_numbers_that_differ_are_an_error(case: ModuleType) -> None:
    with pytest.raises(AssertionError, match=r"adding up: 1\.0 with the road, 1\.1 without it"):
        case.measure(work(case, 20_000, 1.1), repeats=1)


def test_a_line_that_does_not_go_the_road(case: ModuleType) -> None:
    product = SimpleNamespace(near=abs, far=abs)
    made = case.Case("line", lambda: lambda: product.near(-1), part=(product, "far"))
    row = case.measure(made, repeats=1)
    assert (row.ratio, row.note) == (None, "not met")
    assert case.measure(replace(made, part=(product, "near")), repeats=1).ratio is not None


def test_a_switch_puts_back_what_it_changed(case: ModuleType) -> None:
    product = SimpleNamespace(way=1)
    with case.patched((product, "way", 2))():
        assert product.way == 2
    assert product.way == 1


def stored_row(line: str, ratio: float | None, **changes: Any) -> dict[str, Any]:
    times = {"with_s": 1e-3, "without_s": 2e-3, "low": ratio, "high": ratio}
    return {"line": line, "in_table": True, "note": "", "ratio": ratio, **times, **changes}


def test_lines_that_are_shown(page: ModuleType) -> None:
    rows = [
        stored_row("middle", 1.2),
        stored_row("best", 1.5),
        stored_row("unmet", None),
        stored_row("forced", 9.0, note="forced"),
        stored_row("elsewhere", 8.0, in_table=False),
        stored_row("worst", 0.9),
    ]
    assert [row["line"] for row in page.shown(rows)] == ["best", "worst"]
    assert [row["line"] for row in page.shown(rows[2:5])] == ["unmet", "forced", "elsewhere"]
    assert [row["line"] for row in page.shown(rows[2:3])] == ["unmet"]


def test_a_road_that_is_gone_went(page: ModuleType) -> None:
    where = {key: "x" for key in ("what", "commit", "date", "cpu", "kernels", "torch")}
    stored = {
        name: {**where, "rows": [stored_row("line", 1.5)]} for name in ("chain", "of_old_times")
    }
    block = page.page_block(stored)
    assert "| `chain` | line | 1 ms | 2 ms | **1.5** (1.5 to 1.5) | kept |" in block
    assert "| `of_old_times` | line | 1 ms | 2 ms | **1.5** (1.5 to 1.5) | went |" in block

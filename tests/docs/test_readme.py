"""README.md is short, its tables are what the stored results give, and every number in its prose has a source."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = ROOT / "README.md"


@pytest.fixture(autouse=True)
def _benchmarks_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))


def test_length() -> None:
    text = README.read_text()
    assert len(text.splitlines()) <= 130
    assert len(text.split()) <= 1400


@pytest.mark.parametrize("name", ["results", "speed"])
def test_table(name: str) -> None:
    block_of = import_module("benchmarks.page_block").block_of
    assert block_of(README, name) == import_module("benchmarks.readme_tables").tables()[name]


def test_installs_keep_to_the_time_that_the_page_says() -> None:
    stored = json.loads((ROOT / "benchmarks/results/install.json").read_text())
    assert len(stored["installs"]) == 3
    for install in stored["installs"]:
        assert install["cpu_seconds"] <= install["most_cpu_seconds"], install["name"]


def test_the_results_page_counts_as_the_table_does() -> None:
    count = import_module("benchmarks.readme_figures").Count
    text = (ROOT / "docs/results/learning-rate.md").read_text()
    words = [
        r"better than the best constant rate of a grid on (\d+) of the (\d+) tasks",
        r"level with the best constant rate on (\d+) more",
        r"\*\*Know where it loses\*\* even to the best constant rate, on the other (\d+):",
    ]
    (better, every), level, worse = (re.findall(pattern, text)[0] for pattern in words)
    assert count(every).holds()
    for number, side in ((better, "better"), (level, "level"), (worse, "worse")):
        assert count(number, side=side).holds(), side


def test_numbers_have_a_source() -> None:
    figures = import_module("benchmarks.readme_figures")
    text = README.read_text()
    assert not figures.unexplained(text), "add them to benchmarks/readme_figures.py"
    assert [figure for figure in figures.FIGURES if not figure.holds()] == []
    used = set(figures.prose_numbers(text))
    assert [figure for figure in figures.FIGURES if figure.text not in used] == []


@pytest.mark.parametrize("name", ["results", "speed"])
def test_tables_are_small(name: str) -> None:
    module = import_module("benchmarks.readme_tables")
    assert 0 < len(module.tables()[name].splitlines()) - 2 <= module.MOST_ROWS


def test_results_hide_no_loss() -> None:
    table = import_module("benchmarks.readme_tables").tables()["results"]
    sides = re.findall(r"(better|level|worse): ", table)
    assert {"better", "level", "worse"} <= set(sides)
    assert len(sides) == len(table.splitlines()) - 2  # one number and its interval a row


def test_speed_shows_what_others_win() -> None:
    table = import_module("benchmarks.readme_tables").tables()["speed"]
    ratios = [float(ratio) for ratio in re.findall(r"([\d.e+]+) × as fast", table)]
    assert min(ratios) < 1 < max(ratios)


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        ({"mean": 2.0, "low": 1.0, "high": 3.0, "n": 10}, "better: -20.0 % error [-30.0, -10.0]"),
        ({"mean": -2.0, "low": -3.0, "high": -1.0, "n": 10}, "worse: +20.0 % error [+10.0, +30.0]"),
        ({"mean": 0.5, "low": -1.0, "high": 2.0, "n": 10}, "level: -5.0 % error [-20.0, +10.0]"),
    ],
)
def test_a_gain_is_a_smaller_error(gain: dict[str, float], words: str) -> None:
    difference = import_module("benchmarks.readme_tables").difference
    assert difference("MSE x 1000", gain, 10.0) == words

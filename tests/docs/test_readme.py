"""README.md is short, its tables are what the stored results give, and every number in its prose has a source."""

from __future__ import annotations

import json
import math
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
    """What costs many trainings and is better stands in the table, beside what is worse."""
    table = import_module("benchmarks.readme_tables").tables()["results"]
    errors = [float(found) for found in re.findall(r"\| × ([\d.]+) \[", table)]
    ours = errors[0]
    assert "MetaCurvatureLR" in table.splitlines()[2]
    assert min(errors) < ours < max(errors)


def test_speed_shows_what_others_win() -> None:
    table = import_module("benchmarks.readme_tables").tables()["speed"]
    ratios = [float(ratio) for ratio in re.findall(r"([\d.e+]+) × as fast", table)]
    assert min(ratios) < 1 < max(ratios)


def test_a_factor_by_hand() -> None:
    """Log ratios of .0953, 0 and .6931 are factors of 1.1, 1 and 2; each set of tasks has a column."""
    module = import_module("benchmarks.readme_tables")
    ratio = {"mean": math.log(1.1), "low": 0.0, "high": math.log(2), "n": 3}
    methods = [{"label": label, "log_ratio": ratio} for label in module.WAYS]
    summary = {"tasks": [{}] * 3, "over_tasks": {"methods": methods}}
    head, _, ours, *_ = module.results_table({"first": summary, "new": summary}).splitlines()
    assert head.endswith("| error on the 3 first tasks | error on the 3 new tasks |")
    assert ours.endswith("| 1 | × 1.10 [1.00, 2.00] | × 1.10 [1.00, 2.00] |")

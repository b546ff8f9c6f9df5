"""Choices by validation, reports by test, pairs by seed."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from benchmarks.learning_rates import figures, labels, sensitivity_figure, summary, tables
from benchmarks.learning_rates.cli import main
from benchmarks.learning_rates.grid import GRID
from benchmarks.learning_rates.plan import Run
from benchmarks.learning_rates.store import Store
from benchmarks.learning_rates.tasks import TASKS
from tests.learning_rates.records import record

TASK = TASKS["mlp-relu"]
SEEDS = range(4)
GOOD, TRAP = "grid 0.01 constant", "grid 0.1 constant"


def records(offset: float = 0.0) -> dict[str, dict[int, dict[str, object]]]:
    """GOOD has the best validation result, TRAP the best test result; "directional" its average 2 better than GOOD."""
    found = {}
    for point in GRID:
        runs = {}
        for seed in SEEDS:
            value = 60.0 + seed if point.name == GOOD else 50.0 + seed
            made = record(Run(TASK.name, point.name, seed, TASK.steps), value, average=value - 5)
            if point.name == TRAP:
                made["test_last"] = 99.0
            runs[seed] = made
        found[point.name] = runs
    found["directional"] = {
        seed: record(
            Run(TASK.name, "directional", seed, TASK.steps),
            40.0,
            average=62.0 + seed + 0.1 * seed**2 + offset,
        )
        for seed in SEEDS
    }
    return found


def test_the_best_of_the_grid_is_chosen_by_validation_and_never_by_test() -> None:
    made = summary.summarise(TASK, records(), SEEDS)
    assert made is not None
    assert made.best_of_grid.name == made.best_constant.name == GOOD
    assert made.best_of_grid.which == "last"
    assert made.best_of_grid.mean == pytest.approx(60.5)  # test is 1 below validation
    (entry,) = made.methods
    assert entry.which == "average"


def test_gains_are_paired_by_seed_and_agree_with_scipy() -> None:
    made = summary.summarise(TASK, records(), SEEDS)
    assert made is not None
    (entry,) = made.methods
    gain = made.gain(entry, made.best_of_grid)
    differences = np.array([2 + 0.1 * seed**2 for seed in SEEDS])
    low, high = stats.t.interval(0.95, 3, differences.mean(), stats.sem(differences))
    assert (gain.mean, gain.low, gain.high) == pytest.approx((differences.mean(), low, high))
    table = tables.overview([made], ["directional"])
    assert "+2.35 [+1.71, +2.99] better" in table
    assert "<sub>Adam, lr=0.01</sub>" in table
    assert (
        "base, lr=0.001 (SGD: 0.01) | best constant rate | best of the grid | directional |"
        in table
    )


def test_a_tasks_table_has_every_reference_and_both_gains() -> None:
    made = summary.summarise(TASK, records(), SEEDS)
    assert made is not None
    assert made.best_cosine is not None
    assert "cosine" in made.best_cosine.name
    lines = tables.by_task([made]).splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if line.startswith("|")}
    both = "| +2.35 [+1.71, +2.99] better | +2.35 [+1.71, +2.99] better | 0 |"
    assert rows["directional"].endswith(both)
    assert "60.50 ± 0.65" in rows["best constant rate: Adam, lr=0.01"]
    assert "50.50 ± 0.65" in rows["Adam, lr=0.001"]
    assert any(name.startswith("best cosine: Adam, lr=0.0001, cosine") for name in rows)


def test_the_terminal_has_what_the_overview_has() -> None:
    made = summary.summarise(TASK, records(), SEEDS)
    assert made is not None
    lines = tables.for_terminal([made], ["directional"]).splitlines()
    assert lines[-1].split("  ")[1] == "directional"
    assert "+2.35 [+1.71, +2.99] better" in lines[-1]
    assert len({len(line) for line in lines}) == 1
    assert "best of the grid: Adam, lr=0.01" in lines[3]
    assert "60.50 ± 0.65" in lines[3]
    assert "<" not in "".join(lines)


def test_rates_of_sgd_are_told_as_they_are() -> None:
    made = summary.summarise(TASKS["mlp-sgd"], records(), SEEDS)
    assert made is not None
    for table in (tables.by_task([made]), tables.for_terminal([made], [])):
        assert "best of the grid: SGD, lr=0.1 " in table
        assert "SGD, lr=0.01 " in table
    assert "<sub>SGD, lr=0.1</sub>" in tables.overview([made], [])


@pytest.mark.parametrize(
    ("task", "name", "which", "expected"),
    [
        ("mlp-relu", "grid 0.01 constant", "last", "Adam, lr=0.01"),
        ("mlp-adamw", "grid 0.00316 constant", "average", "AdamW, lr=0.00316, averaged"),
        ("mlp-relu", "grid 0.001 constant warm-up", "last", "Adam, lr=0.001, constant, warm-up"),
        ("mlp-sgd", "grid 0.1 cosine warm-up", "average", "SGD, lr=1, cosine, warm-up, averaged"),
        ("mlp-relu", "directional", "average", "directional"),
        ("mlp-relu", "directional, held out", "last", "directional, held out"),
        ("mlp-relu", "reciprocal", "last", "reciprocal, alpha=0.01"),
        ("mlp-relu", "prodigy cosine", "last", "prodigy cosine"),
    ],
)
def test_a_method_has_one_name(task: str, name: str, which: str, expected: str) -> None:
    entry = summary.Entry(name, which, (0,), np.zeros(1), np.zeros(1), 0)
    assert summary.label(TASKS[task], entry) == expected
    if "grid" not in name:
        assert labels.method(name) == labels.ranked(name) == expected


def test_the_file_has_the_names_beside_the_numbers() -> None:
    made = summary.summarise(TASK, records(), SEEDS)
    assert made is not None
    found = summary.to_json(made)
    assert found["untuned"]["label"] == "Adam, lr=0.001"
    assert [(each["method"], each["label"]) for each in found["methods"]] == [
        ("directional", "directional")
    ]


def test_a_summary_alone_keeps_the_environment_of_the_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = Store(tmp_path)
    for name, runs in records().items():
        for seed, made in runs.items():
            store.add(Run(TASK.name, name, seed, TASK.steps), made)
    path = tmp_path / "summary.json"
    path.write_text(json.dumps({"environment": {"torch": "another"}}))
    again = ["--summary-only", "--tasks", TASK.name, "--seeds", "4", "--out", str(tmp_path)]
    assert main(again) == 0
    found = json.loads(path.read_text())
    assert found["environment"] == {"torch": "another"}
    assert list(found["mean_ranks"]) == ["directional", labels.ANY_BASE]
    assert f"  2.00  {labels.ANY_BASE}\n" in capsys.readouterr().out


def test_gains_are_positive_where_a_loss_is_lower() -> None:
    task = TASKS["friedman"]
    made = summary.summarise(task, records(offset=-30.0), SEEDS)
    assert made is not None
    assert made.best_of_grid.mean == pytest.approx(
        46.5 - 1
    )  # the lowest validation mean: averages of 50 - 5
    (entry,) = made.methods
    assert made.gain(entry, made.best_of_grid).mean == pytest.approx(45.5 - (32.5 + 0.35))


def test_an_unfinished_grid_has_no_summary_and_an_unfinished_method_no_entry() -> None:
    found = records()
    del found[GOOD][2]
    assert summary.summarise(TASK, found, SEEDS) is None
    found = records()
    del found["directional"][2]
    made = summary.summarise(TASK, found, SEEDS)
    assert made is not None
    assert made.methods == []


def test_ranks_by_hand() -> None:
    better, worse = (summary.summarise(TASK, records(offset), SEEDS) for offset in (0.0, -30.0))
    assert better is not None
    assert worse is not None
    # untuned: 50.5; directional 62.85 in the one, 32.85 in the other
    assert summary.mean_ranks([better, worse]) == {"directional": 1.5, "grid 0.001 constant": 1.5}
    assert summary.mean_ranks([better])["directional"] == 1


def test_pictures() -> None:
    made = summary.summarise(TASK, records(), SEEDS)
    assert made is not None
    assert figures.draw_gains([made, made]).startswith(b"\x89PNG")
    ours = {1e-3: [60.0, 61.0], 1e-1: [60.0, 61.0]}
    one, three = {"mlp-relu": ({1e-3: [50.0]}, ours)}, ("friedman", "digits-mlp", "conv")
    assert sensitivity_figure.draw(one).startswith(b"\x89PNG")
    assert sensitivity_figure.draw({name: (ours, ours) for name in three}).startswith(b"\x89PNG")

"""What is said about all tasks together, on records made by hand, and on the stored ones against other code's figures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.learning_rates import (
    across,
    across_tables,
    labels,
    profile_figure,
    profiles,
    rates,
    regret,
    report,
)
from benchmarks.learning_rates.carried_over import carried_over
from benchmarks.learning_rates.grid import GRID
from benchmarks.learning_rates.plan import Run
from benchmarks.learning_rates.store import Store
from benchmarks.learning_rates.tasks import TASKS
from tests.learning_rates.records import record

STORED = Path(__file__).resolve().parents[2] / "benchmarks" / "results" / "rules"
ACCURACY, MSE = TASKS["mlp-relu"], TASKS["friedman"]
FIRST, SECOND, THIRD = (point.name for point in GRID[:3])


def runs(*tests: float, **more: Any) -> dict[int, dict[str, Any]]:
    """One record a seed with this test result, at the last iterate alone."""
    return {seed: {"test_last": test, **more} for seed, test in enumerate(tests)}


def test_errors_are_what_is_wrong_and_means_over_the_seeds_that_are_there() -> None:
    records = {FIRST: runs(90.0, 80.0), "directional": runs(99.0), "nobody": {}}
    assert regret.mean_errors(ACCURACY, records) == {
        (FIRST, "last"): 15.0,
        ("directional", "last"): 1.0,
    }
    assert regret.mean_errors(MSE, {FIRST: runs(5.0, 7.0)}) == {(FIRST, "last"): 6.0}
    assert regret.error(ACCURACY, 100.0) > 0  # its logarithm is taken


def test_an_iterate_that_a_run_lacks_is_left_out() -> None:
    records = {FIRST: runs(90.0, 80.0, test_average=95.0)}
    del records[FIRST][1]["test_average"]
    assert set(regret.mean_errors(ACCURACY, records)) == {(FIRST, "last")}


def test_the_oracle_is_a_point_of_the_grid_and_not_the_best_method() -> None:
    errors = {(FIRST, "last"): 4.0, (SECOND, "average"): 2.0, ("directional", "last"): 1.0}
    found = regret.log_ratios(errors)
    assert found[SECOND, "average"] == 0
    assert found[FIRST, "last"] == pytest.approx(math.log(2))
    assert found["directional", "last"] == pytest.approx(-math.log(2))
    assert regret.log_ratios({("directional", "last"): 1.0}) == {}


def test_one_setting_is_carried_over_from_the_other_tasks_alone() -> None:
    one, two, three = (FIRST, "last"), (SECOND, "last"), (THIRD, "average")
    ratios = {
        "a": {one: 0.0, two: 0.3, three: 0.5, ("directional", "last"): -1.0},
        "b": {one: 0.9, two: 0.1, three: 0.4, ("directional", "last"): -1.0},
        "c": {one: 0.2, two: 0.6, three: 0.5, ("directional", "last"): -1.0},
    }
    # Of b and c: .55, .35, .45; of a and c: .1, .45, .5; of a and b: .45, .2, .45.
    assert carried_over(ratios) == {"a": two, "b": one, "c": two}


def test_only_what_all_tasks_have_is_carried_over() -> None:
    one, two = (FIRST, "last"), (SECOND, "last")
    assert carried_over({"a": {one: 0.5, two: 0.0}, "b": {one: 0.5}}) == {"a": one, "b": one}
    assert carried_over({"a": {one: 0.5}}) == {}
    assert carried_over({"a": {one: 0.5}, "b": {two: 0.5}}) == {}


def test_the_interval_is_over_tasks() -> None:
    level = vars(across.bootstrap([0.3, 0.3, 0.3]))
    assert level == pytest.approx({"mean": 0.3, "low": 0.3, "high": 0.3, "n": 3})
    values = np.random.default_rng(1).normal(0.2, 0.5, 200)
    found = across.bootstrap(list(values))
    half = 1.96 * values.std() / math.sqrt(200)  # of means of 200 the bootstrap is normal
    assert found.mean == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - half, abs=0.005)
    assert found.high == pytest.approx(values.mean() + half, abs=0.005)
    assert math.isnan(across.bootstrap([0.3]).low)


def test_one_method_behind_another_is_paired_by_task() -> None:
    """The ratios spread far, and the two methods' by the same: their difference does not."""
    tasks = [f"task {place}" for place in range(20)]
    far = {task: float(place) for place, task in enumerate(tasks)}
    shifted = {task: value + 0.5 for task, value in reversed(far.items())}
    ours, other = (
        across.Row(name, ratios, across.bootstrap(list(ratios.values())))
        for name, ratios in (("directional", far), ("prodigy", shifted))
    )
    assert ours.interval.high - ours.interval.low > 4
    assert vars(across.behind(other, ours)) == pytest.approx(
        {"mean": 0.5, "low": 0.5, "high": 0.5, "n": 20}
    )
    assert "| +0.500 [+0.500, +0.500] |" in across_tables.overall([ours, other])


def test_a_profile_by_hand() -> None:
    """Errors a: 1 and 4, b: 2 and 2; the best of the two tasks are 1 and 2."""
    log = {"a": {"x": 0.0, "y": math.log(4)}, "b": {"x": math.log(2), "y": math.log(2)}}
    found = profiles.factors(log)
    assert found["a"] == pytest.approx([1, 2])
    assert found["b"] == pytest.approx([1, 2])
    assert [profiles.within(found["a"], x) for x in (0.9, 1, 1.9, 2.01)] == [0, 0.5, 0.5, 1]
    assert profiles.factors({}) == {}
    third = profiles.factors({**log, "c": {"x": math.log(8), "y": 0.0}})
    assert third["b"] == pytest.approx([2, 2])
    assert profile_figure.draw(third, 2).startswith(b"\x89PNG")


def test_found_rates_and_how_far_seeds_differ() -> None:
    records = {
        "directional": runs(1.0, 1.0),
        "prodigy": runs(1.0, 1.0, rate=None),
        "half": runs(1.0, 1.0, rate=0.5),
    }
    records["directional"][0]["rate"], records["directional"][1]["rate"] = 0.01, 0.04
    del records["half"][1]["rate"]
    found = rates.found(records)
    assert list(found) == ["directional"]
    assert found["directional"].mean == pytest.approx(0.02)
    # log .01 and log .04 lie log 4 apart, and two values a standard deviation of that over the root of 2.
    assert found["directional"].spread == pytest.approx(4 ** (1 / math.sqrt(2)))
    assert rates.summarised({0: 0.3, 1: 0.3, 2: 0.3}).spread == pytest.approx(1)
    assert math.isnan(rates.summarised({0: 0.3}).spread)
    table = across_tables.rates({"mlp-relu": found, "conv": {}})
    assert "| mlp-relu | 0.02 ×/÷ 2.67 |" in table
    assert across_tables.rates({"conv": {}}) == ""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two tasks: a point of the grid is best on each, another one good on both, and ours has half the best's error."""
    store = Store(tmp_path)
    for task, best in ((ACCURACY, 10), (TASKS["conv"], 20)):
        for place, point in enumerate(GRID):
            error = 16.0 if place == best else 24.0 if place == 5 else 32.0
            for seed in range(3):
                run = Run(task.name, point.name, seed, task.steps)
                made = record(run, 101 - error, average=0.0)
                store.add(run, made)
        for method in ("directional", "prodigy"):
            for seed in range(3):
                run = Run(task.name, method, seed, task.steps)
                if method == "prodigy" and task.name == "conv":
                    continue
                store.add(run, record(run, 10.0, average=101 - 8.0) | {"rate": 0.01})
    return store


def test_rows_over_tasks(store: Store) -> None:
    tasks = [TASKS["mlp-relu"], TASKS["conv"]]
    done = report.summaries(tasks, range(3), store)
    by_name = {row.name: row for row in report.over_tasks(done, store)}
    assert "prodigy" not in by_name  # it has not run on all
    ours = by_name["directional"]
    assert ours.ratios == pytest.approx({"mlp-relu": -math.log(2), "conv": -math.log(2)})
    assert ours.interval.mean == pytest.approx(-math.log(2))
    tuned = by_name["best of the grid, tuned on the task"]
    assert tuned.interval.mean == 0
    carried = by_name[labels.CARRIED_OVER]
    # The best point of either task is none of the other's: it is carried over, and fails.
    assert carried.interval.mean == pytest.approx(math.log(2))
    assert next(iter(by_name)) == "directional"


def test_the_report_has_them(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    report.write([TASKS["mlp-relu"], TASKS["conv"]], ["directional"], range(3), store, quiet=False)
    printed = capsys.readouterr().out
    text = (store.folder / "summary.md").read_text()
    for shown in (printed, text):
        assert "| `directional` | -0.693 [-0.693, -0.693] |" in shown
    rows = {line.split(" | ")[0]: line for line in text.splitlines()}
    # Four times the error of ours, which is the best of all.
    carried = rows[f"| `{labels.CARRIED_OVER}`"]
    assert "| 0.693 [0.693, 0.693] | +1.386 [+1.386, +1.386] | 0.69 (" in carried
    assert carried.endswith("| 0.00 | 0.00 | 0.00 |")
    assert rows["| `directional`"].endswith("| 1.00 | 1.00 | 1.00 |")
    assert "| mlp-relu | 0.01 ×/÷ 1.00 |" in text
    for name in report.FILES:
        assert (store.folder / name).exists()


def test_the_stored_runs_give_the_figures_of_other_code() -> None:
    """A program that was written apart says .241 for one setting, .099 for the rule and .119 for the first one."""
    store = Store(STORED)
    done = report.summaries(TASKS.values(), range(10), store)
    by_name = {row.name: row for row in report.over_tasks(done, store)}
    assert len(done) == 15
    assert by_name[labels.CARRIED_OVER].interval.mean == pytest.approx(0.241, abs=5e-4)
    assert by_name[labels.CARRIED_OVER].worst == "mlp-sgd"
    assert by_name["directional"].interval.mean == pytest.approx(0.099, abs=5e-4)
    assert by_name["searched"].interval.mean == pytest.approx(0.119, abs=5e-4)
    assert by_name["searched, no horizon"].interval.mean == pytest.approx(0.112, abs=5e-4)

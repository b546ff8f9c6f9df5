"""What is run, what the grid is, and where results are kept."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest

from benchmarks.learning_rates import plan, references
from benchmarks.learning_rates.grid import GRID, GridPoint
from benchmarks.learning_rates.plan import Run
from benchmarks.learning_rates.store import Store
from benchmarks.learning_rates.tasks import TASKS
from tests.learning_rates.records import record

ADAM, SGD = TASKS["mlp-relu"], TASKS["mlp-sgd"]


def test_the_grid_is_what_the_readme_says() -> None:
    assert len(GRID) == len({point.name for point in GRID}) == 7 * 3 * 2
    assert sum(point.is_constant for point in GRID) == 7
    assert {point.rate for point in GRID} == {1e-4, 3.16e-4, 1e-3, 3.16e-3, 1e-2, 3.16e-2, 1e-1}


def test_schedules_by_hand() -> None:
    assert ADAM.steps == 2000  # warm-up 100 steps
    constant = GridPoint(1e-2, "constant", True)
    assert [constant.lr(ADAM, s) for s in (0, 49, 99, 100, 1999)] == pytest.approx(
        [1e-4, 5e-3, 1e-2, 1e-2, 1e-2]
    )
    linear = GridPoint(1e-2, "linear", False)
    assert [linear.lr(ADAM, s) for s in (0, 500, 1999)] == pytest.approx([1e-2, 7.5e-3, 5e-6])
    cosine = GridPoint(1e-2, "cosine", True)
    assert cosine.lr(ADAM, 100 + 950) == pytest.approx(5e-3)
    assert cosine.lr(ADAM, 100 + 475) == pytest.approx(1e-2 * 0.5 * (1 + math.sqrt(0.5)))
    assert linear.lr(SGD, 0) == pytest.approx(1e-1)  # ten times Adam's


def test_the_grid_is_searched_by_halving(tmp_path: Path) -> None:
    store = Store(tmp_path)
    screening = plan.grid_runs(ADAM, range(5), store.get)
    assert len(screening) == 42 * 3
    assert {run.seed for run in screening} == {0, 1, 2}
    # The later a point stands in the grid, the better; the average of one early point beats all.
    for run in screening:
        place = [point.name for point in GRID].index(run.method)
        store.add(run, record(run, float(place), average=99.0 if place == 1 else 0.0))
    runs = plan.grid_runs(ADAM, range(5), store.get)
    assert runs[: len(screening)] == screening
    later = {run.method for run in runs if run.seed == 4}
    best = {point.name for point in GRID[-7:]} | {GRID[1].name}
    assert later == best | {point.name for point in GRID if point.is_constant}


def test_lower_is_better_where_it_is(tmp_path: Path) -> None:
    task, store = TASKS["friedman"], Store(tmp_path)
    for run in plan.grid_runs(task, range(4), store.get):
        store.add(run, record(run, float([p.name for p in GRID].index(run.method)), average=50.0))
    later = {run.method for run in plan.grid_runs(task, range(4), store.get) if run.seed == 3}
    assert {point.name for point in GRID[:8]} <= later


def test_results_survive_and_a_cut_line_is_done_again(tmp_path: Path) -> None:
    store = Store(tmp_path)
    runs = [Run("mlp-relu", "directional", seed, 2000) for seed in range(3)]
    for run in runs:
        store.add(run, record(run, 60.0 + run.seed))
    path = tmp_path / "mlp-relu.jsonl"
    text = path.read_text()
    path.write_text(text[:-20])  # a kill in the middle of the last line
    again = Store(tmp_path)
    assert [run in again for run in runs] == [True, True, False]
    again.add(runs[2], record(runs[2], 70.0))
    last = Store(tmp_path)
    assert last.by_method(ADAM)["directional"][2]["val_last"] == 70.0
    assert last.by_method(ADAM)["directional"][0] == json.loads(text.splitlines()[0])


def test_what_is_not_finite_is_written_as_json(tmp_path: Path) -> None:
    run = Run("mlp-relu", "directional", 0, 2000)
    Store(tmp_path).add(
        run, record(run, 60.0) | {"train_loss": math.nan, "curve": [[100, math.inf]]}
    )

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    made = json.loads((tmp_path / "mlp-relu.jsonl").read_text(), parse_constant=refuse)
    assert made["train_loss"] is None
    assert made["curve"] == [[100, None]]


def test_other_steps_and_other_rates_stay_apart(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = Run("mlp-relu", "directional", 0, 2000)
    for other in (
        dataclasses.replace(run, steps=100),
        dataclasses.replace(run, user_lr=0.1),
        dataclasses.replace(run, task="conv"),
    ):
        store.add(other, record(other, 1.0))
    assert run not in store
    assert store.by_method(ADAM) == {}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TASKS))
def test_tasks_are_fresh_for_every_seed_and_the_same_for_one(name: str) -> None:
    task = TASKS[name]
    one, same, other = task.data(0), task.data(0), task.data(1)
    assert (one.train.x == same.train.x).all()
    assert one.train.x.shape == other.train.x.shape
    assert not (one.train.x == other.train.x).all()
    output = task.network(0)(one.train.x[:4])
    assert output.isfinite().all()
    assert (output == task.network(0)(one.train.x[:4])).all()
    assert not (output == task.network(1)(one.train.x[:4])).all()
    assert task.loss_fn(output, one.train.y[:4]).ndim == 0
    assert len(one.train) > task.batch_size
    assert min(len(one.validation), len(one.test)) >= 80


def test_windows_of_text_overlap_in_training_alone() -> None:
    splits = TASKS["transformer"].data(0)
    train, test = splits.train, splits.test
    assert (train.x[1, :48] == train.x[0, 16:]).all()
    assert (train.y[0, :-1] == train.x[0, 1:]).all()
    assert test.x[1, 0] == test.y[0, -1]
    assert len(test) == 400


@pytest.mark.slow
def test_no_example_is_in_two_parts() -> None:
    for name in ("mlp-relu", "digits-mlp", "friedman", "diabetes"):
        splits = TASKS[name].data(3)
        parts = [
            {tuple(row) for row in part.x.tolist()}
            for part in (splits.train, splits.validation, splits.test)
        ]
        assert not parts[0] & parts[2]
        assert not parts[0] & parts[1]
        assert not parts[1] & parts[2]


def test_the_oracle_has_all_seeds(tmp_path: Path) -> None:
    """A point with three lucky seeds is asked for the others, and then the next one; validation had dropped both."""
    store, seeds = Store(tmp_path), range(5)
    lucky, second = [point.name for point in GRID if not point.is_constant][:2]
    for place, point in enumerate(GRID):
        for seed in seeds if point.is_constant else range(3):
            run = Run(ADAM.name, point.name, seed, ADAM.steps)
            made = record(run, float(place))
            made["test_last"] = {lucky: 90.0, second: 80.0}.get(point.name, 50.0)
            store.add(run, made)

    def asked() -> list[tuple[str, int]]:
        return [(run.method, run.seed) for run in references.missing([ADAM], seeds, store)]

    assert asked() == [(lucky, 3), (lucky, 4)]
    for seed in (3, 4):
        run = Run(ADAM.name, lucky, seed, ADAM.steps)
        store.add(run, record(run, 1.0))
    assert asked() == [(second, 3), (second, 4)]
    for seed in (3, 4):
        run = Run(ADAM.name, second, seed, ADAM.steps)
        store.add(run, record(run, 81.0))
    assert asked() == []


def test_the_setting_carried_over_has_all_seeds(tmp_path: Path) -> None:
    """What is best on the other task is compared on this one, where halving has dropped it."""
    store, seeds, point = Store(tmp_path), range(5), GRID[-1].name
    for task, best in ((ADAM, GRID[0].name), (SGD, point)):
        for name in (GRID[0].name, point):
            for seed in seeds if name == best else range(3):
                run = Run(task.name, name, seed, task.steps)
                store.add(run, record(run, 90.0 if name == best else 40.0))
    lacking = references.missing([ADAM, SGD], seeds, store)
    assert [(run.task, run.method, run.seed) for run in lacking] == [
        (ADAM.name, point, 3),
        (ADAM.name, point, 4),
        (SGD.name, GRID[0].name, 3),
        (SGD.name, GRID[0].name, 4),
    ]

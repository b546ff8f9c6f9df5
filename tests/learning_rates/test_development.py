"""The comparison of variants by which settings are chosen: its seeds, its patches, its reference and its arithmetic."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.learning_rates.development import cli, plan, single, summary, table
from benchmarks.learning_rates.development.reference import REFERENCE, Point
from benchmarks.learning_rates.development.tasks import STANDARD, TASKS
from benchmarks.learning_rates.development.variants import VARIANTS, Variant
from benchmarks.learning_rates.methods import Setting
from benchmarks.learning_rates.plan import Run
from benchmarks.learning_rates.store import Store
from benchmarks.learning_rates.training import run as run_of_comparison
from metacurv.optim.directional import rule as directional
from metacurv.optim.directional import settling
from metacurv.optim.directional.guard import Guard


def constants() -> tuple[Any, ...]:
    """What the patches change."""
    finish = directional._FINISH, directional._FROM
    return directional._WARM_UP, finish, settling._GAIN, settling._TARGET, Guard.begin_again


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks of 60 steps each."""
    for name in ("digits-mlp", "adding"):
        monkeypatch.setitem(TASKS, name, replace(TASKS[name], steps=60))


@pytest.mark.slow
@pytest.mark.usefixtures("short")
def test_a_tiny_run_is_compared_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["--tasks", "digits-mlp", "adding", "--seeds", "1", "--no-progress"]
    argv += ["--variants", "as it is", "no settling", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "summary.md").read_text() in printed
    assert "| digits-mlp | 1 | " in printed
    found = json.loads((tmp_path / "summary.json").read_text())
    assert found["variants"]["no settling"] == {
        "rule": {},
        "patches": {
            "metacurv.optim.directional.settling._GAIN": 0.0,
            "metacurv.optim.directional.settling._LAST_GAIN": 0.0,
        },
    }
    assert [each["task"] for each in found["tasks"]] == ["digits-mlp", "adding"]
    (digits, adding) = found["tasks"]
    assert digits["variants"]["as it is"]["seeds"] == [100]
    assert found["means"]["standard"]["as it is"]["log_ratio"] == pytest.approx(
        digits["variants"]["as it is"]["log_ratio"]
    )
    both = [each["variants"]["no settling"]["log_ratio"] for each in (digits, adding)]
    assert found["means"]["all"]["no settling"]["log_ratio"] == pytest.approx(sum(both) / 2)
    lines = (tmp_path / "adding.jsonl").read_text().splitlines()
    assert len(lines) == len(REFERENCE) + 2

    def refuse(run: Run) -> dict[str, Any]:
        raise AssertionError(run)

    monkeypatch.setattr(single, "train", refuse)  # everything is there
    assert cli.main(argv) == 0


def test_the_rule_as_it_is_is_the_rule_of_the_comparison() -> None:
    found = single.train(Run("digits-mlp", "as it is", 100, 60))
    usual = run_of_comparison("digits-mlp", "directional", 100, steps=60)
    assert found["val_last"] == pytest.approx(usual["val_last"], rel=1e-5)
    assert found["test_last"] == pytest.approx(usual["test_last"], rel=1e-5)
    assert found["rate"] > 0


@pytest.mark.slow
def test_the_variants_change_what_they_say() -> None:
    found = {}
    for name in VARIANTS:
        run = single.train(Run("friedman", name, 100, 200))
        found[name] = run["rate"], run["test_last"]
    usual = found.pop("as it is")
    assert found.pop("no race") == usual  # on this task the slopes are no noise
    assert usual not in found.values()
    assert len(set(found.values())) == len(found)


@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_patch_is_undone(name: str) -> None:
    before = constants()
    with VARIANTS[name].in_place():
        assert (constants() != before) == bool(VARIANTS[name].patches)
    assert constants() == before
    with pytest.raises(ZeroDivisionError), VARIANTS[name].in_place():
        raise ZeroDivisionError
    assert constants() == before


def test_a_patch_of_what_is_not_there_fails_and_leaves_nothing() -> None:
    before = constants()
    patches = {
        "metacurv.optim.directional.settling._GAIN": 0.0,
        "metacurv.optim.directional.settling._GONE": 0.0,
    }
    with (
        pytest.raises(AttributeError, match="_GONE"),
        Variant(patches=patches).in_place(),
    ):
        pass
    assert constants() == before


@pytest.mark.parametrize("seed", [0, 9, 99, 108])
def test_other_seeds_are_refused(
    seed: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    message = f"seeds must be of 100 to 107, got {seed}"
    with pytest.raises(ValueError, match=message):
        single.train(Run("digits-mlp", "as it is", seed, 60))
    with pytest.raises(ValueError, match=message):
        plan.runs([TASKS["digits-mlp"]], ["as it is"], [100, seed])
    argv = ["--seeds", "1", "--seed-start", str(seed), "--out", str(tmp_path / "none")]
    with pytest.raises(SystemExit) as caught:
        cli.main(argv)
    assert caught.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "none").exists()


def test_the_first_seed_is_run_before_the_second() -> None:
    runs = plan.runs([TASKS["conv"], TASKS["adding"]], ["race"], range(100, 102))
    assert len(runs) == len(set(runs)) == 2 * 2 * (len(REFERENCE) + 1)
    assert [run.seed for run in runs] == sorted(run.seed for run in runs)


def test_the_reference_by_hand() -> None:
    adam, sgd = TASKS["mlp-relu"], TASKS["mlp-sgd"]
    assert len(REFERENCE) == 10
    own, plain = Point(1e-2, "average"), Point(1e-2, "linear")
    steps = (0, 99, 199, 200, 1199, 1200, 1600, 1999)
    assert [own.lr(adam, step) for step in steps] == pytest.approx(
        [5e-5, 5e-3, 1e-2, 1e-2, 1e-2, 7e-3, 3.5e-3, 7e-3 / 800]
    )
    assert [plain.lr(adam, step) for step in (0, 999, 1000, 1500, 1999)] == pytest.approx(
        [1e-2, 1e-2, 1e-2, 5e-3, 1e-5]
    )
    assert plain.lr(sgd, 0) == pytest.approx(1e-1)


def test_the_finish_goes_on_from_the_average() -> None:
    task = replace(TASKS["digits-mlp"], steps=20)  # the finish begins with step 12
    model = task.network(100)
    splits = task.data(100)
    method = Point(1e-2, "average").make(Setting(task, model, splits, 100, 1e-3))
    parameters = list(model.parameters())
    average = [p.detach().clone() for p in parameters]
    for step in range(13):
        method.begin(step, splits.train.x[:50], splits.train.y[:50])
        if step < 12:
            method.optimizer.zero_grad()
            task.loss_fn(model(splits.train.x[:50]), splits.train.y[:50]).backward()
            method.step()
            for kept, p in zip(average, parameters, strict=True):
                kept.lerp_(p.detach(), 9 / (step + 10))
    for kept, p in zip(average, parameters, strict=True):
        torch.testing.assert_close(p.detach(), kept)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in STANDARD])
def test_the_own_tasks_are_regressions_fresh_for_every_seed(name: str) -> None:
    task = TASKS[name]
    one, same, other = task.data(100), task.data(100), task.data(101)
    assert (one.train.x == same.train.x).all()
    assert not (one.train.x == other.train.x).all()
    output = task.network(100)(one.train.x[:4])
    assert output.shape == one.train.y[:4].shape
    if name == "adding":
        values, marks = one.test.x.unbind(-1)
        assert (marks[:, :10].sum(1) == 1).all()
        assert (marks[:, 10:].sum(1) == 1).all()
        sums = (values * marks).sum(1)
        assert torch.corrcoef(torch.stack([sums, one.test.y[:, 0]]))[0, 1] > 0.9999


def filled(folder: Path, task: str, values: Mapping[str, Mapping[int, float]]) -> Store:
    """A store of results; rates are a hundredth of the seed above 99."""
    store = Store(folder)
    for method, by_seed in values.items():
        for seed, value in by_seed.items():
            run = Run(task, method, seed, TASKS[task].steps)
            rate = None if method in REFERENCE else (seed - 99) / 100
            store.add(run, {
                "task": run.task, "method": run.method, "seed": run.seed, "steps": run.steps, "user_lr": run.user_lr,
                "rate": rate, "val_last": value - 2, "test_last": value + 2, "commit": "abc",
            })  # fmt: skip
    return store


def test_the_summary_by_hand(tmp_path: Path) -> None:
    points = list(REFERENCE)
    accuracies: dict[str, dict[int, float]] = {point: {100: 50.0, 101: 50.0} for point in points}
    accuracies[points[3]] = {100: 82.0, 101: 78.0}  # 20 % wrong
    accuracies["as it is"] = {100: 75.0, 101: 75.0}  # 25 %
    accuracies["race"] = {100: 82.0}  # 18 %, as many as the reference from this seed
    filled(tmp_path, "conv", accuracies)
    losses: dict[str, dict[int, float]] = {point: {100: 40.0} for point in points}
    losses["as it is"] = {100: 10.0, 101: 1.0}  # of the second seed there is no reference
    store = filled(tmp_path, "friedman", losses)
    variants = ["as it is", "race", "no race"]
    tasks = [TASKS["conv"], TASKS["friedman"], TASKS["adding"]]
    conv, friedman = summary.summarise(tasks, variants, range(100, 104), store)
    assert (conv.best, conv.error, conv.seeds) == (points[3], pytest.approx(20.0), (100, 101))
    as_it_is = conv.entries["as it is"]
    assert as_it_is.log_ratio == pytest.approx(math.log(25 / 20))
    assert as_it_is.rates is not None
    assert as_it_is.rates.mean == pytest.approx(math.sqrt(0.01 * 0.02))
    assert as_it_is.rates.spread == pytest.approx(2 ** math.sqrt(0.5))
    assert conv.entries["race"].log_ratio == pytest.approx(0.0)
    assert conv.entries["race"].seeds == (100,)
    assert set(conv.entries) == {"as it is", "race"}
    assert friedman.entries["as it is"].log_ratio == pytest.approx(math.log(10 / 40))
    mean = summary.mean([conv, friedman], "as it is")
    assert mean is not None
    assert mean.log_ratio == pytest.approx((math.log(1.25) + math.log(0.25)) / 2)
    assert mean.tasks == 2
    assert summary.mean([conv, friedman], "no race") is None
    assert summary.commits(tasks, variants, store) == ["abc"]
    lines = table.table([conv, friedman], variants).splitlines()
    assert lines[0] == "| task | seeds | best of the reference (error) | as it is | race |"
    assert lines[2] == (
        "| conv | 2 | 0.00316 linear (20) | +0.223 (0.0141 ×/÷ 1.63) | +0.000 (0.01), 1 seed |"
    )
    assert lines[-2].startswith("| **mean of all** |  |  | **-0.582** ×/÷ ")
    assert lines[-2].endswith(" | **+0.000**, 1 of 2 tasks |")


def test_behind_by_hand() -> None:
    """Twice and four times the error on one task, the same twice on another: log 2 and a half more, with an error."""

    def entry(*errors: float) -> summary.Entry:
        return summary.Entry(1.0, 0.0, None, (100, 101), dict(zip((100, 101), errors, strict=True)))

    tasks = [
        summary.TaskSummary(
            TASKS[name], "", 1.0, (100, 101), {"as it is": entry(1.0, 3.0), "other": other}
        )
        for name, other in (("digits-mlp", entry(2.0, 12.0)), ("conv", entry(1.0, 3.0)))
    ]
    found = summary.behind(tasks, "other", "as it is")
    assert found is not None
    mean, error = found
    assert mean == pytest.approx(0.75 * math.log(2))
    assert error == pytest.approx(
        math.log(2) / 2 / 2
    )  # log 2 apart: a standard error of half of it, over two tasks
    assert summary.behind(tasks, "none", "as it is") is None


def test_runs_of_several_commits_are_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {method: {100: 50.0} for method in [*REFERENCE, "as it is", "race"]}
    filled(tmp_path, "conv", values)
    argv = ["--summary-only", "--tasks", "conv", "--seeds", "1", "--out", str(tmp_path)]
    assert cli.main(argv) == 0
    assert "The runs are of" not in capsys.readouterr().out
    path = tmp_path / "conv.jsonl"
    kept, last = path.read_text().rsplit("\n", 2)[:2]
    path.write_text(kept + "\n" + last.replace('"abc"', '"abd"') + "\n")
    assert cli.main(argv) == 0
    assert "The runs are of 2 commits: abc, abd." in capsys.readouterr().out
    assert json.loads((tmp_path / "summary.json").read_text())["commits"] == ["abc", "abd"]


def test_nothing_finished_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--summary-only", "--out", str(tmp_path)]) == 1
    assert "no task whose reference is finished" in capsys.readouterr().err

"""The sweep for safety: what it runs, how it judges, and a part of it that is cheap enough for every day."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning_rates import safety, safety_sweep, safety_table, workers
from benchmarks.learning_rates.cli import main
from benchmarks.learning_rates.safety import Case
from benchmarks.learning_rates.tasks import TASKS
from benchmarks.learning_rates.training import Training
from tests.helpers import sampled


def test_the_sweep_is_whole() -> None:
    every = list(safety.cases())
    assert len(every) == len(set(every)) == 15 * 5 * 6 * 5
    assert {case.batch for case in every} == {1, 4, 16, 64, "full"}
    assert set(safety.BASES) >= {"SGD", "SGD, momentum 0.9", "Adam", "AdamW", "RMSprop"}
    assert len(every) // 5 == len({(c.task, c.batch, c.base) for c in every[: len(every) // 5]})


@pytest.mark.parametrize("base", list(safety.BASES))
@pytest.mark.parametrize("batch", sampled([4, 64, "full"], 3))
@pytest.mark.parametrize("task", ["digits-mlp", "friedman"])
def test_training_does_not_end_above_where_it_began(task: str, batch: int | str, base: str) -> None:
    record = safety.run(Case(task, batch, base, 0), steps=80)
    assert safety_table.is_safe(record), record
    assert record["steps"] == 80
    assert record["rate"] > 0


@pytest.mark.slow
def test_full_batches_are_all_examples_and_take_fewer_steps() -> None:
    conv = safety._task(Case("conv", "full", "Adam", 0), None)
    assert conv.batch_size == len(conv.data(0).train) == 3200
    assert conv.steps == 400_000 // 3200
    assert safety._task(Case("conv", 1, "Adam", 0), None).steps == TASKS["conv"].steps
    text = safety._task(Case("transformer", "full", "Adam", 0), None)
    assert text.batch_size == len(text.data(0).train) == 128
    assert text.steps == 100


def test_muon_trains_the_matrices_alone() -> None:
    model = TASKS["digits-cnn"].network(0)
    optimizer = safety.BASES["Muon on the matrices"](model)
    (group,) = optimizer.param_groups
    assert [p.shape for p in group["params"]] == [(10, 128)]
    assert [p.requires_grad for p in model.parameters()] == [False] * 4 + [True, False]


def made(**more: Any) -> dict[str, Any]:
    found = {"task": "conv", "batch": "4", "base": "Adam", "seed": 0, "steps": 80}
    return {**found, "first": 2.0, "last": 1.0, **more}


def test_a_first_rate_does_not_vanish_where_the_slope_is_small_beside_rounding() -> None:
    """It was halved forty times, and then no step moved a parameter."""
    training = Training(
        safety._task(Case("diabetes", 16, "SGD", 101), None), "directional", 101, 1e-3
    )
    training.advance(1)
    assert training.method.rate is not None
    assert training.method.rate() > 1e-6


def test_verdicts() -> None:
    assert safety_table.is_safe(made())
    assert safety_table.is_safe(made(last=2.0))
    assert not safety_table.is_safe(made(last=2.001))
    assert not safety_table.is_safe(made(last=None))
    assert not safety_table.is_safe(made(last=math.nan))
    assert safety_table.ratio(made()) == 0.5
    assert (
        safety_table.ratio(made(last=None)) == safety_table.ratio(made(last=math.nan)) == math.inf
    )
    text = safety_table.table(
        [made(), made(last=3.0, base="SGD"), made(batch="full", last=None)], worst=2
    )
    assert "2 of 3 runs end above the loss of their first step; 2 above 0.9 of it" in text
    assert "| conv | 0 of 0 | 1 of 2 | 0 of 0 | 0 of 0 | 1 of 1 |" in text
    assert [line.split(" | ")[-1] for line in text.splitlines()[-2:]] == ["inf |", "1.5000 |"]


def test_a_sweep_goes_on_where_it_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Case] = []

    def finished(cases: list[Case], jobs: int, do: Any) -> Any:
        ran.extend(cases)
        return [(c, made(task=c.task, batch=str(c.batch), base=c.base, seed=c.seed)) for c in cases]

    monkeypatch.setattr(workers, "finished", finished)
    command = ["--safety", "--tasks", "conv", "--seeds", "1", "--out", str(tmp_path)]
    command += ["--no-progress"]
    assert main(command) == 0
    assert len(ran) == 5 * 6
    path = tmp_path / "safety.jsonl"
    path.write_text(path.read_text()[:-20])  # a kill in the middle of the last line
    ran.clear()
    assert main(command) == 0
    assert ran == [Case("conv", "full", "Muon on the matrices", 0)]
    lines = path.read_text().splitlines()
    assert len(lines) == 31
    assert json.loads(lines[-1])["batch"] == "full"
    assert "0 of 30 runs end above" in (tmp_path / "safety.md").read_text()
    ran.clear()
    assert main([*command, "--summary-only"]) == 0
    assert ran == []
    assert main([*command, "--seed-start", "100"]) == 0
    assert {case.seed for case in ran} == {100}
    path.write_text(json.dumps(made(last=9.0)) + "\n")
    assert main([*command, "--summary-only"]) == 1
    capsys.readouterr()
    assert safety_sweep.run(["conv"], [0], tmp_path / "none", 1, progress=False, train=False) == 1
    assert "has no runs" in capsys.readouterr().out

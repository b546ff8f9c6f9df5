"""Every method trains; the command runs, goes on where it was killed, and does the same with more processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.learning_rates import cli, gen
from benchmarks.learning_rates.catalogue import METHODS, PUBLISHED
from benchmarks.learning_rates.directional import DIRECTIONAL
from benchmarks.learning_rates.grid import GRID
from benchmarks.learning_rates.plan import Run
from benchmarks.learning_rates.searched import SEARCHED
from benchmarks.learning_rates.tasks import TASKS
from benchmarks.learning_rates.training import Training, run
from benchmarks.learning_rates.workers import finished, train
from tests.helpers import sampled


@pytest.mark.parametrize("task", sampled(["digits-mlp", "mlp-sgd"], 2))
@pytest.mark.parametrize("method", [*PUBLISHED, *DIRECTIONAL])
def test_methods_train(method: str, task: str) -> None:
    made = run(task, method, 0, steps=60)
    assert made["val_last"] >= 5
    assert not made["diverged"]
    assert len(made["curve"]) == 20


@pytest.mark.parametrize("method", ["reciprocal", "cdat"])
def test_second_derivatives_of_attention(method: str) -> None:
    """The fused kernel that the transformer trains with has none."""
    training = Training(TASKS["transformer"], method, 0, 1e-3)
    training.advance(2)
    assert training.done == 2
    assert not training.diverged


def test_a_point_of_the_grid_is_torchs_adam() -> None:
    """Weights and average after 30 steps of the loop against Adam written with torch alone."""
    task = replace(TASKS["digits-mlp"], steps=30)
    training = Training(task, "grid 0.01 linear", 0, 1e-3)
    start = {k: v.clone() for k, v in training.model.state_dict().items()}
    training.advance(30)
    model = task.network(0)
    model.load_state_dict(start)
    opt = torch.optim.Adam(model.parameters(), lr=0.01)
    average = [p.detach().clone() for p in model.parameters()]
    train = training.splits.train
    for step in range(30):
        opt.param_groups[0]["lr"] = 0.01 * (1 - step / 30)
        rows = training._batches[step]
        opt.zero_grad()
        task.loss_fn(model(train.x[rows]), train.y[rows]).backward()
        opt.step()
        for a, p in zip(average, model.parameters(), strict=True):
            a += 9 / (step + 10) * (p.detach() - a)
    for ours, theirs in zip(training.model.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert training.method.averaged is not None
    with training.method.averaged():
        for ours, mean in zip(training.model.parameters(), average, strict=True):
            torch.testing.assert_close(ours.detach(), mean, rtol=1e-4, atol=1e-6)


def test_a_run_that_diverges_counts_as_useless(monkeypatch: pytest.MonkeyPatch) -> None:
    class Breaks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = torch.nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made: torch.Tensor = self.inner(x) * float("nan")
            return made

    monkeypatch.setitem(
        TASKS, "digits-mlp", replace(TASKS["digits-mlp"], network=lambda _: Breaks())
    )
    made = run("digits-mlp", GRID[0].name, 0, steps=60)
    assert made["diverged"]
    assert made["test_last"] == made["val_average"] == 10.0


@pytest.mark.slow
def test_processes_give_what_one_gives() -> None:
    runs = [Run("digits-mlp", "directional", seed, 30) for seed in range(2)]
    one = {each: record for each, record in finished(runs, 1, train)}
    two = {each: record for each, record in finished(runs, 2, train)}
    for each in runs:
        for key in ("val_last", "test_average", "train_loss"):
            assert one[each][key] == two[each][key]


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "--quick",
        "--tasks",
        "digits-mlp",
        "--no-progress",
        "--out",
        str(tmp_path),
        "--seed-start",
        "3",
    ]
    assert cli.main([*arguments, "--methods", "own"]) == 0
    assert "no task has its whole grid" in capsys.readouterr().out
    lines = (tmp_path / "digits-mlp.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(DIRECTIONAL)
    assert {json.loads(line)["seed"] for line in lines} == {3, 4}
    assert cli.main([*arguments, "--methods", "own", "grid"]) == 0
    printed = capsys.readouterr().out
    assert "best of the grid" in printed
    assert "mean rank" in printed
    after = (tmp_path / "digits-mlp.jsonl").read_text().splitlines()
    assert after[: len(lines)] == lines  # nothing was trained twice
    assert len(after) == len(lines) + 2 * len(GRID)
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["tasks"][0]["task"] == "digits-mlp"
    assert "### digits-mlp" in (tmp_path / "summary.md").read_text()
    for name in ("rules.png", "profile.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_help_and_errors(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["--help"])
    assert stop.value.code == 0
    assert "learning-rate rules" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["--tasks", "imagenet"])
    assert "got imagenet" in capsys.readouterr().err


def test_catalogue() -> None:
    assert len(METHODS) == len(GRID) + 1 + len(PUBLISHED) + len(DIRECTIONAL) + len(SEARCHED)


@pytest.mark.parametrize(
    ("method", "first", "lr"),
    [("gen", 0.8, 0.9 * 0.8 + 0.1 * 1), ("gen", 0.1, 0.9 * 0.1 + 0.1 * 0.2), ("cdat 1", 0, 1.0)],
)
def test_own_writings_find_newtons_step_on_a_parabola(
    method: str, first: float, lr: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of theta^2 / 2 by plain SGD it is 1; GeN goes a tenth of the way there, or to twice the last."""
    monkeypatch.setattr(gen, "_FIRST", first)

    class Parabola(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.theta = torch.nn.Parameter(torch.tensor([3.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.theta + 0 * x[:, :1]

    task = replace(
        TASKS["digits-mlp"], base="sgd", network=lambda _: Parabola(), loss_fn=_half_square
    )
    monkeypatch.setattr(
        type(task), "optimizer", lambda _, model, lr: torch.optim.SGD(model.parameters(), lr=lr)
    )
    training = Training(task, method, 0, 1e-3)
    training.advance(1)
    (theta,) = training.model.parameters()
    assert theta.item() == pytest.approx(3.0 * (1 - lr), rel=1e-3, abs=1e-5)


def _half_square(output: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
    return output.square().mean() / 2

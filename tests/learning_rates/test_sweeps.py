"""What ``--sensitivity`` and ``--cost`` run, and which options go together."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.learning_rates import (
    cost,
    sensitivity,
    sensitivity_figure,
    tasks,
    workers,
)
from benchmarks.learning_rates.cli import main
from benchmarks.learning_rates.plan import Run
from benchmarks.learning_rates.store import Store


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--sensitivity", "--tasks", "diabetes"],
            "--tasks must be of mlp-relu, .* got diabetes",
        ),
        (["--cost", "--tasks", "conv", "friedman"], "with --cost .* got friedman"),
        (["--cost", "--safety"], "at most one of .* got --safety, --cost"),
        (["--safety", "--quick"], "--safety does not go with --quick"),
        (["--safety", "--set", "new"], "--safety does not go with --set new"),
        (["--tasks", "bikes"], "with --set standard --tasks must be of mlp-relu, .* got bikes"),
        (["--methods", "searched"], "searched needs --searched CHECKOUT, a git worktree of"),
        (["--searched", "/nowhere"], "--searched must be a checkout with a metacurv, got /nowhere"),
        (["--cost", "--jobs", "2"], "--cost does not go with --jobs"),
        (["--cost", "--summary-only"], "--cost does not go with --summary-only"),
        (["--sensitivity", "--methods", "own"], "--sensitivity does not go with --methods"),
    ],
)
def test_options_that_do_not_go_together(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*argv, "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def done(run: Run) -> dict[str, Any]:
    return {
        "task": run.task, "method": run.method, "seed": run.seed, "steps": run.steps, "user_lr": run.user_lr,
        "test_last": 50.0 + run.seed, "test_average": 60.0 + run.seed,
    }  # fmt: skip


def test_sensitivity_draws_what_earlier_calls_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        workers, "finished", lambda runs, jobs, do: [(run, done(run)) for run in runs]
    )
    store = Store(tmp_path)
    for name in ("friedman", "conv"):
        sensitivity.run([tasks.TASKS[name]], range(2), store, 1, progress=False)
    found = json.loads((tmp_path / "sensitivity.json").read_text())
    assert list(found) == ["friedman", "conv"]
    assert found["conv"]["directional"]["1e-06"] == [60.0, 61.0]
    assert found["conv"]["user's rate"]["0.1"] == [50.0, 51.0]


def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the picture of the sensitivity is drawn from, from here on."""
    seen: list[Any] = []
    monkeypatch.setattr(
        sensitivity.sensitivity_figure, "draw", lambda results: seen.append(results) or b"picture"
    )
    return seen


def test_what_is_stored_is_drawn_again_and_nothing_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = {
        "conv": {"user's rate": {"1e-06": [1.5], "0.1": [2.0]}, "directional": {"0.1": [3.0]}}
    }
    path = tmp_path / "sensitivity.json"
    path.write_text(json.dumps(stored))
    seen = drawn(monkeypatch)
    assert main(["--sensitivity", "--summary-only", "--out", str(tmp_path)]) == 0
    assert seen == [{"conv": ({1e-6: [1.5], 0.1: [2.0]}, {0.1: [3.0]})}]
    assert json.loads(path.read_text()) == stored
    assert (tmp_path / "sensitivity.png").read_bytes() == b"picture"


def test_nothing_stored_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--sensitivity", "--summary-only", "--out", str(tmp_path)]) == 1
    assert f"{tmp_path} has no sensitivity.json to draw" in capsys.readouterr().err


def test_the_picture_marks_the_best_rate_and_numbers_both(monkeypatch: pytest.MonkeyPatch) -> None:
    figures: list[Any] = []
    monkeypatch.setattr(sensitivity_figure, "as_png", lambda figure: figures.append(figure) or b"")
    base, ours = {0.001: [60.0, 62.0], 0.1: [20.0, 30.0]}, {0.001: [65.0], 0.1: [65.0]}
    sensitivity_figure.draw({"mlp-relu": (base, ours), "friedman": (base, ours)})
    (figure,) = figures
    accuracy, error = figure.axes
    for axes, best in ((accuracy, (0.001, 61.0)), (error, (0.1, 25.0))):
        (ring,) = (line for line in axes.lines if line.get_label() == "best of these rates")
        assert (ring.get_xdata()[0], ring.get_ydata()[0]) == best
        assert {text.get_text() for text in axes.texts} == {f"{best[1]:.1f}", "65.0"}
        assert axes.get_xlabel() == "learning rate you give"
    assert accuracy.get_title(loc="left") == "mnist1d, ReLU network"
    assert accuracy.get_ylabel() == "test accuracy, %"
    assert "lower is better" in error.get_ylabel()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "Adam at this learning rate",
        "best of these rates",
        "MetaCurvatureLR(Adam), any learning rate",
    ]


def test_costs_of_other_tasks_and_methods_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ratios = {
        ("conv", "directional"): 1.04,
        ("mlp-relu", "directional"): 1.2,
        ("mlp-relu", "gen"): 1.3,
    }
    none = dict.fromkeys(cost.PARTS, 0.0)
    monkeypatch.setattr(
        cost, "_measured", lambda task, method, seed: (ratios[task.name, method], none)
    )
    store = Store(tmp_path)
    now = cost.describe(1)
    days = iter(["2026-01-01", "2026-01-02", "2026-01-03"])
    monkeypatch.setattr(cost, "describe", lambda threads: {**now, "date": next(days)})

    def found() -> dict[tuple[str, str], float]:
        of = json.loads((tmp_path / "cost.json").read_text())["tasks"]
        return {(t, m): each["median"] for t in of for m, each in of[t]["methods"].items()}

    for task, method in ratios:
        cost.run([tasks.TASKS[task]], [method], store, progress=False)
    assert found() == ratios
    said = capsys.readouterr().out
    assert "conv, directional: 1.040 times the base's time (1.040 to 1.040); it should be" in said
    assert "mlp-relu, gen: 1.300 times the base's time (1.300 to 1.300)\n" in said
    another = {**now, "torch": "another"}
    monkeypatch.setattr(cost, "describe", lambda threads: another)
    cost.run([tasks.TASKS["mlp-relu"]], ["gen"], store, progress=False)
    assert list(found()) == [("mlp-relu", "gen")]


def test_costs_are_of_whole_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method whose steps take twice as long costs 2, whatever the base's take."""

    class Slow:
        def __init__(self, task: Any, method: str, seed: int, lr: float) -> None:
            self.each, self.done, self.seconds = (0.2 if method == "gen" else 0.1), 0, 0.0

        def advance(self, end: int) -> None:
            self.seconds += self.each * (end - self.done)
            self.done = end

    monkeypatch.setattr(cost, "Training", Slow)
    ratio, parts = cost._measured(tasks.TASKS["mlp-relu"], "gen", 0)
    assert ratio == pytest.approx(2)
    assert parts == pytest.approx(
        {"early steps": 0.01, "warm-up and settling": 0.25, "hold and finish": 0.74}
    )

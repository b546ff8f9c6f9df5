"""Killed at any moment and started again: the same numbers, and no one else's results."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from metacurv.experiment import cli, comparison, results_files
from metacurv.experiment.training import TrainingRun
from tests.helpers import sampled

Numbers = Callable[[Path], list[dict[str, str]]]
Experiment = Callable[..., int]


def killed_once(
    command: list[str], environment: dict[str, str], folder: Path, when: Callable[[], bool]
) -> None:
    """Start the command and kill it, as no handler can notice, as soon as ``when`` holds."""
    process = subprocess.Popen(
        command, env=environment, cwd=folder.parent, stdout=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while not when():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_twice_it_ends_with_the_same_numbers(
    tmp_path: Path, command: tuple[list[str], dict[str, str]], numbers: Numbers
) -> None:
    """Once in the middle of the first run, once in a later one; then to the end."""
    options = "--hidden 8 --batch-size 20 --num-samples 200 --steps 600 --seeds 2 --eval-every 20"
    arguments = [*options.split(), "--checkpoint-seconds", "0"]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert cli.main([*arguments, "--out", str(whole)]) == 0
    program = [*command[0], *arguments, "--out", str(cut)]
    parts = cut / "parts"
    killed_once(program, command[1], cut, lambda: (parts / "seed000-adam.checkpoint").exists())
    assert not list(parts.glob("*.csv"))
    killed_once(program, command[1], cut, lambda: any(parts.glob("seed001-*.checkpoint")))
    assert 2 <= len(list(parts.glob("*.csv"))) < 4
    assert not (cut / "metrics.csv").exists()
    assert cli.main([*arguments, "--out", str(cut)]) == 0
    assert numbers(cut) == numbers(whole)
    assert not list(parts.glob("*.checkpoint"))
    results = [json.loads((folder / "summary.json").read_text()) for folder in (cut, whole)]
    for result in results:
        assert "times as long" in result["sentences"].pop()
        for timed in ("seconds_ratio", "words"):
            del result["directional"][timed]
        for entry in (*result["methods"], *result["differences_from_adam"]):
            del entry["total_seconds"]
    assert results[0] == results[1]


@pytest.mark.parametrize("stop_at", sampled(range(1, 25, 3), 4))
def test_stopped_at_any_evaluation_it_ends_with_the_same_numbers(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    experiment: Experiment,
    numbers: Numbers,
    stop_at: int,
) -> None:
    assert experiment("--out", tmp_path / "whole") == 0
    advance, count = TrainingRun.advance, 0

    def stopped(self: TrainingRun) -> None:
        nonlocal count
        count += 1
        if count == stop_at:
            raise KeyboardInterrupt
        advance(self)

    cut = ("--out", tmp_path / "cut", "--checkpoint-seconds", 0)
    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "advance", stopped)
        assert experiment(*cut) == cli.INTERRUPTED
    assert experiment(*cut) == 0
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_a_resumed_run_keeps_the_seconds_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: Experiment
) -> None:
    restored = []
    load = TrainingRun.load_state_dict

    def noted(self: TrainingRun, state: dict[str, object]) -> None:
        load(self, state)
        restored.append((self.step, self.seconds))

    with monkeypatch.context() as patch:
        patch.setattr(comparison.RunFolder, "finish", _interrupt)
        assert experiment("--out", tmp_path, "--checkpoint-seconds", 0) == cli.INTERRUPTED
    monkeypatch.setattr(TrainingRun, "load_state_dict", noted)
    assert experiment("--out", tmp_path) == 0
    assert [step for step, _ in restored] == [60]
    assert restored[0][1] > 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("damage", ["", "step,seconds\n0,1\n", "cut", "words"])
def test_a_damaged_part_is_trained_again(
    tmp_path: Path, experiment: Experiment, numbers: Numbers, damage: str
) -> None:
    assert experiment("--out", tmp_path) == 0
    before = numbers(tmp_path)
    part = tmp_path / "parts" / "seed001-adam.csv"
    text = part.read_text()
    broken = {"cut": text[: len(text) // 2], "words": text.replace("0.001", "much")}
    part.write_text(broken.get(damage, damage))
    assert experiment("--out", tmp_path) == 0
    assert numbers(tmp_path) == before
    assert part.read_text() != damage


def test_a_damaged_checkpoint_is_a_run_from_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, experiment: Experiment, numbers: Numbers
) -> None:
    assert experiment("--out", tmp_path / "whole") == 0
    with monkeypatch.context() as patch:
        patch.setattr(comparison.RunFolder, "finish", _interrupt)
        experiment("--out", tmp_path / "cut", "--checkpoint-seconds", 0)
    (checkpoint,) = (tmp_path / "cut").glob("parts/*.checkpoint")
    checkpoint.write_bytes(checkpoint.read_bytes()[:-10])
    assert experiment("--out", tmp_path / "cut") == 0
    assert numbers(tmp_path / "cut") == numbers(tmp_path / "whole")


def test_a_finished_experiment_only_reprints(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    experiment: Experiment,
) -> None:
    assert experiment("--out", tmp_path) == 0
    first = capsys.readouterr().out
    files = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    def never(*_: object) -> None:
        raise AssertionError("must not be called")

    for module, name in ((comparison.data, "load"), (results_files.figure, "draw")):
        monkeypatch.setattr(module, name, never)
    assert experiment("--out", tmp_path) == 0
    second = capsys.readouterr().out
    assert second.split("\n\n")[1:] == first.split("\n\n")[1:]  # after the lines about the start
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == files


def test_a_picture_that_is_missing_is_drawn_again(tmp_path: Path, experiment: Experiment) -> None:
    assert experiment("--out", tmp_path) == 0
    picture = tmp_path / "loss_comparison.png"
    picture.unlink()
    assert experiment("--out", tmp_path) == 0
    assert picture.exists()


def test_a_changed_environment_is_said_and_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], experiment: Experiment
) -> None:
    assert experiment("--out", tmp_path) == 0
    path = tmp_path / "environment.json"
    known = json.loads(path.read_text())
    path.write_text(json.dumps({**known, "torch": "2.0"}))
    (tmp_path / "parts" / "seed001-adam.csv").unlink()
    capsys.readouterr()
    assert experiment("--out", tmp_path) == 0
    note = f"note: results so far were made with torch 2.0, now it is {known['torch']}"
    assert note in capsys.readouterr().out
    (resumed,) = json.loads(path.read_text())["resumed"]
    assert resumed["changed"] == {"torch": ["2.0", known["torch"]]}

"""Whose results a folder holds, and what --fresh may remove."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import filelock
import pytest

Experiment = Callable[..., int]


def refused(experiment: Experiment, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The error of a command that must fail as argparse fails."""
    with pytest.raises(SystemExit) as caught:
        experiment(*arguments)
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_another_configuration_is_an_error_that_says_what_differs(
    tmp_path: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("--out", tmp_path) == 0
    error = refused(experiment, capsys, "--out", tmp_path, "--steps", 80, "--alpha", 0.1)
    assert "argument --out" in error
    assert "steps: 60 there, 80 asked for" in error
    assert "alphas: [0.01] there, [0.1] asked for" in error
    assert "seeds" not in error.partition("another configuration")[2].partition("Choose")[0]
    assert "--fresh" in error


def test_what_changes_no_number_is_no_other_configuration(
    tmp_path: Path, experiment: Experiment
) -> None:
    assert experiment("--out", tmp_path) == 0
    assert experiment("--out", tmp_path, "--checkpoint-seconds", 1, "--no-progress") == 0


def test_fresh_discards_results_and_nothing_else(tmp_path: Path, experiment: Experiment) -> None:
    assert experiment("--out", tmp_path) == 0
    stale = tmp_path / "parts" / "seed001-adam.csv"
    stale.rename(tmp_path / "parts" / "seed009-adam.csv")
    for mine in ("notes.txt", "parts/notes.txt"):
        (tmp_path / mine).write_text("mine")
    assert experiment("--out", tmp_path, "--alpha", 0.1, "--fresh") == 0
    assert json.loads((tmp_path / "config.json").read_text())["alphas"] == [0.1]
    parts = {path.name for path in tmp_path.glob("parts/*.csv")}
    runs = ("adam", "metacurvaturelr-alpha0.1", "directional")
    assert parts == {f"seed00{seed}-{run}.csv" for seed in (0, 1) for run in runs}
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert (tmp_path / "parts" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("more", [(), ("--fresh",)])
def test_a_strangers_config_json_is_not_touched(
    tmp_path: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str], more: tuple[str]
) -> None:
    theirs = tmp_path / "config.json"
    theirs.write_text('{"theirs": 1}')
    error = refused(experiment, capsys, "--out", tmp_path, *more)
    assert "belongs to something else" in error
    assert theirs.read_text() == '{"theirs": 1}'


@pytest.mark.parametrize("content", [None, "{"])
def test_results_without_a_whole_config_json_are_not_trusted(
    tmp_path: Path,
    experiment: Experiment,
    capsys: pytest.CaptureFixture[str],
    content: str | None,
) -> None:
    assert experiment("--out", tmp_path) == 0
    (tmp_path / "config.json").unlink()
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    assert "missing or damaged" in refused(experiment, capsys, "--out", tmp_path)
    assert experiment("--out", tmp_path, "--fresh") == 0


def test_two_processes_cannot_share_a_folder(
    tmp_path: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "parts").mkdir()
    with filelock.FileLock(tmp_path / "parts" / ".lock"):
        error = refused(experiment, capsys, "--out", tmp_path)
    assert "another process writes" in error
    assert experiment("--out", tmp_path) == 0


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert "argument --out" in refused(experiment, capsys, "--out", tmp_path / "file")


def test_the_default_folder_follows_from_the_configuration(
    tmp_path: Path, experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for alpha in (0.1, 0.2, 0.1):
        assert experiment("--alpha", alpha) == 0
    folders = list((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(folder.name.startswith("mnist1d-") for folder in folders)

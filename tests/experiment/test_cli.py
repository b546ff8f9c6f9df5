"""The command line, from the options to the files."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import metacurv
from metacurv.experiment import cli, options
from metacurv.experiment.__main__ import EXTRA
from metacurv.experiment.config import SWEEP, Config

Experiment = Callable[..., int]


def parsed(*arguments: str) -> Config:
    parser = options.build_parser()
    return options.to_config(parser, parser.parse_args(arguments))


def test_the_defaults_are_the_experiment_of_the_readme() -> None:
    config = parsed()
    assert config == Config()
    assert (config.hidden, config.activation, config.batch_size) == ((100, 100), "relu", 100)
    assert (config.steps, config.seeds, config.lr, config.alphas) == (4000, 10, 1e-3, (1e-2,))
    assert (config.update_freq, config.n_hutchinson_samples, config.threads) == (10, 1, 1)


def test_every_option_reaches_the_configuration() -> None:
    options = (
        "--hidden 3 4 --activation tanh --batch-size 5 --steps 6 --seeds 7 --lr 0.1 --alpha 0.2 0.3"
        " --update-freq 8 --n-hutchinson-samples 9 --eval-every 11 --threads 2 --backend reference"
        " --num-samples 120 --data-seed 13 --quick --no-directional"
    )
    config = parsed(*options.split())
    assert config == Config(
        hidden=(3, 4),
        activation="tanh",
        batch_size=5,
        steps=6,
        seeds=7,
        lr=0.1,
        alphas=(0.2, 0.3),
        update_freq=8,
        n_hutchinson_samples=9,
        eval_every=11,
        threads=2,
        backend="reference",
        num_samples=120,
        data_seed=13,
        directional=False,
        quick=True,
    )


def test_quick_yields_to_what_is_given() -> None:
    quick = parsed("--quick")
    assert (quick.seeds, quick.steps, quick.quick) == (5, 2000, True)
    assert parsed("--quick", "--steps", "7").steps == 7


def test_the_sweep_trains_adam_once() -> None:
    config = parsed("--alpha-sweep", "--seeds", "2")
    assert config.alphas == SWEEP == (1e-4, 1e-3, 1e-2, 1e-1)
    assert len(config.runs) == 2 * 6
    assert sum(run.method.name == "Adam" for run in config.runs) == 2
    assert len(parsed("--alpha-sweep", "--seeds", "2", "--no-directional").runs) == 2 * 5


def test_methods_alternate_from_seed_to_seed() -> None:
    order = [(run.seed, run.method.label) for run in parsed("--seeds", "3").runs]
    there = ["Adam", "reciprocal, alpha=0.01", "directional"]
    expected = [(seed, label) for seed in range(3) for label in there[:: -1 if seed == 1 else 1]]
    assert order == expected


def test_help_explains_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--help"])
    assert caught.value.code == 0
    assert "%" not in capsys.readouterr().out.replace("95%", "")
    for action in options.build_parser()._actions:
        assert action.help, action.option_strings


@pytest.mark.parametrize(
    ("arguments", "named", "needed"),
    [
        ("--steps 0", "--steps", "a whole number >= 1, got '0'"),
        ("--steps many", "--steps", "a whole number >= 1, got 'many'"),
        ("--seeds 1.5", "--seeds", "a whole number >= 1"),
        ("--hidden 10 0", "--hidden", "a whole number >= 1, got '0'"),
        ("--batch-size 0", "--batch-size", "a whole number >= 1"),
        ("--batch-size 161 --num-samples 200", "--batch-size", "at most 160"),
        ("--num-samples 9", "--num-samples", "a whole number >= 10"),
        ("--data-seed -1", "--data-seed", "from 0 to 4294967295"),
        ("--lr 0", "--lr", "a finite number > 0, got '0'"),
        ("--lr inf", "--lr", "a finite number > 0"),
        ("--alpha -0.1", "--alpha", "a finite number >= 0, got '-0.1'"),
        ("--alpha nan", "--alpha", "a finite number >= 0"),
        ("--alpha 1 2 1", "--alpha", "each value may come once"),
        ("--alpha 1 --alpha-sweep", "--alpha-sweep", "not allowed with"),
        ("--update-freq 0", "--update-freq", "a whole number >= 1"),
        ("--n-hutchinson-samples 0", "--n-hutchinson-samples", "a whole number >= 1"),
        ("--eval-every 0", "--eval-every", "a whole number >= 1"),
        ("--threads 0", "--threads", "a whole number >= 1"),
        ("--checkpoint-seconds -1", "--checkpoint-seconds", "a finite number >= 0"),
        ("--activation sine", "--activation", "invalid choice"),
        ("--backend cuda", "--backend", "invalid choice"),
        ("--step 10", "--step", "unrecognized"),
    ],
)
def test_a_bad_value_is_an_error_that_names_the_option(
    arguments: str,
    named: str,
    needed: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments.split())
    assert caught.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert named in error
    assert needed in error
    assert not list(tmp_path.iterdir())


def test_native_kernels_that_are_not_there_are_an_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(metacurv, "native_available", lambda: False)
    with pytest.raises(SystemExit):
        parsed("--backend", "native")
    assert "argument --backend: 'native' needs compiled kernels" in capsys.readouterr().err


def test_a_run_leaves_every_file_and_prints_every_part(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    assert cli.main([*arguments, "--out", str(tmp_path), "--alpha", "0.01", "0.1"]) == 0
    assert torch.get_num_threads() == threads
    out, err = capsys.readouterr()
    native = metacurv.native_available()
    backend = f"backend: {'native kernels' if native else 'the PyTorch reference'}"
    assert out.startswith(f"8 runs of 60 steps each; {backend}")
    assert f"results: {tmp_path}" in out
    assert "seed" not in err  # no progress bar where there is no terminal
    report = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert "Verdict" in report
    assert "paired by seed" in report
    start, table, told = out.rstrip().split("\n\n")
    assert len(start.splitlines()) == 2
    assert table in report
    sentences = re.findall(r"[^.](?:[^.]|\.(?=\S))*\.(?:\s|$)", told)
    assert len(sentences) == 5
    assert "a glimpse, not evidence" in sentences[-1]
    assert str(tmp_path / "loss_comparison.png") in sentences[-1]
    assert str(tmp_path / "report.txt") in sentences[-1]

    config = json.loads((tmp_path / "config.json").read_text())
    assert config["alphas"] == [0.01, 0.1]
    environment = json.loads((tmp_path / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    assert environment["build"] == json.loads(json.dumps(metacurv.build_info()))
    assert {"date", "python", "cpu", "threads", "git_commit", "platform"} <= environment.keys()

    with open(tmp_path / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = "seed method alpha step seconds train_loss test_loss train_acc test_acc lr trace"
    assert list(rows[0]) == columns.split()
    keys = [(row["seed"], row["method"], row["alpha"], row["step"]) for row in rows]
    assert keys == [
        (seed, method, alpha, step)
        for seed in ("0", "1")
        for method, alpha in (
            ("Adam", ""),
            ("reciprocal", "0.01"),
            ("reciprocal", "0.1"),
            ("directional", ""),
        )
        for step in ("0", "20", "40", "60")
    ]
    assert all(float(row[name]) is not None for row in rows for name in columns.split()[4:])

    summary = json.loads((tmp_path / "summary.json").read_text(encoding="utf-8"))
    assert [entry["alpha"] for entry in summary["differences_from_adam"]] == [0.01, 0.1, None]
    labels = [entry["label"] for entry in summary["methods"]]
    assert labels == ["Adam", "reciprocal, alpha=0.01", "reciprocal, alpha=0.1", "directional"]
    assert "The directional rule against Adam, evaluated at the average of its iterates" in report
    assert summary["directional"]["words"].startswith("The directional rule against Adam")
    assert summary["verdict"]["hypothesis"] in {"supported", "not supported", "undecided"}
    with Image.open(tmp_path / "loss_comparison.png") as picture:
        assert picture.width == 1500


def test_without_the_directional_rule_nothing_speaks_of_it(
    tmp_path: Path, experiment: Experiment
) -> None:
    assert experiment("--out", tmp_path, "--no-directional") == 0
    assert not list(tmp_path.glob("parts/*directional*"))
    assert "directional" not in (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert "directional" not in (tmp_path / "metrics.csv").read_text()
    assert json.loads((tmp_path / "summary.json").read_text())["directional"] is None


def test_the_same_command_gives_the_same_numbers(
    tmp_path: Path, experiment: Experiment, numbers: Callable[[Path], list[dict[str, str]]]
) -> None:
    for name in ("one", "two"):
        assert experiment("--out", tmp_path / name) == 0
    assert numbers(tmp_path / "one") == numbers(tmp_path / "two")


def test_a_training_that_diverges_ends_with_a_reason(
    tmp_path: Path, experiment: Experiment, capsys: pytest.CaptureFixture[str]
) -> None:
    assert experiment("--out", tmp_path, "--lr", "1e30") == 1
    assert "the training loss is" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_program_it_needs_no_terminal_that_knows_unicode(
    tmp_path: Path, arguments: list[str], command: tuple[list[str], dict[str, str]]
) -> None:
    program, environment = command
    done = subprocess.run(
        [*program, *arguments, "--out", str(tmp_path / "out")],
        env={**environment, "PYTHONIOENCODING": "ascii"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "a glimpse, not evidence" in done.stdout


def test_the_packages_that_may_be_missing_are_those_of_the_extra() -> None:
    tomllib = pytest.importorskip("tomllib")
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extra = project["project"]["optional-dependencies"]["experiment"]
    names = {re.split("[<>=]", requirement)[0] for requirement in extra}
    assert {{"scikit-learn": "sklearn"}.get(name, name) for name in names} == EXTRA


def test_a_package_that_is_missing_is_named_with_its_cure(
    tmp_path: Path, command: tuple[list[str], dict[str, str]]
) -> None:
    program, environment = command
    (tmp_path / "tqdm.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'tqdm'\", name='tqdm')"
    )
    path = os.pathsep.join([str(tmp_path), environment["PYTHONPATH"]])
    done = subprocess.run(
        [*program, "--quick"],
        env={**environment, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1
    assert "needs tqdm" in done.stderr
    assert "pip install 'metacurv[experiment]'" in done.stderr
    assert "Traceback" not in done.stderr

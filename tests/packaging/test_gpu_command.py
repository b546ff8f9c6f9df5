"""The command .ci/gpu: its arguments, its steps and their time, what it does where one fails, and what it leaves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import gpu_environment
import gpu_main
import gpu_report
from gpu_run import run
from gpu_steps import ROOT, Step, gpu_tests, steps
from gpu_wheels import LIMIT_MIB, WHEELS, check

MINUTES = 9


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(ROOT / ".ci" / "gpu"), *arguments],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )


def python(name: str, program: str, seconds: int = 20, **options: object) -> Step:
    return Step(name, (sys.executable, "-c", program), seconds, **options)  # type: ignore[arg-type]


def test_it_says_which_wheels_to_carry() -> None:
    done = command("--wheels", "--wheelhouse", "/somewhere/of mine")
    assert done.returncode == 0
    assert f"under {LIMIT_MIB} MiB in all" in done.stdout
    assert "--dest '/somewhere/of mine'" in done.stdout
    for wheel in ("pybind11", "hypothesis", "ninja", "pytest", "pytest-xdist"):
        assert any(each.partition(">")[0] == wheel for each in WHEELS)
        assert f"'{wheel}" in done.stdout
    subprocess.run(["sh", "-n"], input=done.stdout, text=True, check=True)


def test_a_wheelhouse_must_hold_wheels_and_not_too_many(tmp_path: Path) -> None:
    done = command("--rehearse", "--wheelhouse", str(tmp_path))
    assert done.returncode == 2
    assert "--wheelhouse must be a folder with wheels" in done.stderr
    with (tmp_path / "large.whl").open("wb") as wheel:
        wheel.truncate(2**20)
        assert check(tmp_path) == ""
        wheel.truncate((LIMIT_MIB + 1) * 2**20)
    assert f"at most {LIMIT_MIB} MiB, got {LIMIT_MIB + 1} MiB" in check(tmp_path)


def test_all_steps_fit_their_time(tmp_path: Path) -> None:
    todo = steps(tmp_path, tmp_path, rehearse=False)
    assert sum(step.seconds for step in todo) <= gpu_main.SECONDS < 60 * MINUTES
    assert len({step.name for step in todo}) == len(todo)
    rehearsed = steps(tmp_path, tmp_path, rehearse=True)
    assert [step.name for step in rehearsed] == [step.name for step in todo]
    for tool in ("memcheck", "racecheck"):
        planted, ops = (step for step in todo if step.name.startswith(tool))
        assert (
            planted.command[: len(ops.under)] == ops.under
        )  # so what is shown of one holds for the other


def test_every_file_with_tests_on_the_gpu_runs() -> None:
    """They are looked for in two folders alone."""
    found = {f"tests/cuda/test_{each}.py" for each in ("ops", "estimators", "training")}
    assert found < {*gpu_tests()}
    looked = {ROOT / "tests" / room for room in ("ops", "cuda")}
    for path in {*(ROOT / "tests").glob("**/test_*.py")} - {Path(__file__)}:
        if path.parent not in looked:
            assert not re.search(r"DEVICES|mark\.gpu", path.read_text()), path


def test_a_failed_step_stops_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    todo = [
        python("wrong", "import sys; print('what it said'); sys.exit(3)"),
        python("silent", "pass", expect="a word"),
        Step("absent", ("/nowhere/compute-sanitizer",), 20),
        python("found", "import sys; sys.exit(9)", exit_code=9),
        python("right", "print('a word')", expect="^a word$"),
    ]
    assert not gpu_main.run_all(todo, tmp_path, seconds=60, rehearse=False)
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert [each["outcome"] for each in found["steps"]] == ["failed"] * 3 + ["passed"] * 2
    whys = [each["why"] for each in found["steps"]]
    assert whys[:2] == ["status 3, not 0", "its output has nothing like 'a word'"]
    assert whys[2].startswith("compute-sanitizer does not run")
    assert (found["passed"], found["gpu_was_used"]) == (False, True)
    assert found["steps"][0]["last_lines"] == ["what it said"]
    for printed in (capsys.readouterr().out, (tmp_path / "gpu.txt").read_text()):
        assert "wrong: failed: status 3, not 0" in printed
        assert "what it said" in printed


@pytest.mark.slow
def test_a_step_that_takes_too_long_ends_with_all_that_it_started(tmp_path: Path) -> None:
    child = f"import time; time.sleep(3); open({str(tmp_path / 'late')!r}, 'w')"
    program = (
        f"import subprocess, sys; print('begun', flush=True);"
        f"subprocess.run([sys.executable, '-c', {child!r}])"
    )
    done = run(python("slow", program, 1), os.environ, left=60, rehearse=False)
    assert (done.outcome, done.why) == ("failed", "stopped after 1 s, which is all that it had")
    assert "begun" in done.output
    time.sleep(3)
    assert not (tmp_path / "late").exists()


def test_no_step_begins_after_the_end(tmp_path: Path) -> None:
    todo = [python("first", "import time; time.sleep(20)"), python("second", "pass")]
    assert not gpu_main.run_all(todo, tmp_path, seconds=1.5, rehearse=False)
    first, second = json.loads((tmp_path / "gpu.json").read_text())["steps"]
    assert first["why"].startswith("stopped after")
    assert (second["outcome"], second["seconds"]) == ("not run", 0)
    assert "time for all steps together" in second["why"]


def test_a_rehearsal_names_what_it_left_out_and_is_no_proof(tmp_path: Path) -> None:
    result, half = tmp_path / "result.json", tmp_path / "half.json"
    todo = [
        Step("on a GPU", ("/nowhere/needs-it",), 20, needs_gpu=True),
        python("under", "pass", under=("/nowhere/tool", "--option")),
        python("measured", f"open({str(result)!r}, 'w').write('[1]')", result=result),
        python("stopped", f"open({str(half)!r}, 'w').write('[1')", result=half),
    ]
    assert gpu_main.run_all(todo, tmp_path / "out", seconds=60, rehearse=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"gpu.json", "gpu.txt"}
    found = json.loads((tmp_path / "out" / "gpu.json").read_text())
    assert found["gpu_was_used"] is False
    assert [each["outcome"] for each in found["steps"]] == ["needs a GPU"] + ["passed"] * 3
    assert [each.get("result") for each in found["steps"]] == [None, None, [1], None]
    text = (tmp_path / "out" / "gpu.txt").read_text()
    assert text.startswith(gpu_report.REHEARSED)
    assert "$ /nowhere/needs-it" in text
    assert "with a GPU under: /nowhere/tool --option" in text


def test_what_was_left_out_of_an_output_is_said() -> None:
    assert gpu_report.shortened("x" * gpu_report.MOST) == "x" * gpu_report.MOST
    assert gpu_report.shortened("x" * gpu_report.MOST + "end").startswith("(3 characters were left")


def test_the_environment_sees_the_packages_of_this_python(tmp_path: Path) -> None:
    gpu_environment.main(str(tmp_path / "venv"))
    program = "import importlib.util as u, sys; print(sys.prefix, u.find_spec('torch').origin)"
    done = subprocess.run(
        [str(tmp_path / "venv" / "bin" / "python"), "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(tmp_path / "venv"), torch.__file__]

"""The programs in examples/ run as a reader would run them, and what they print is right."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, folder: Path, *arguments: str) -> str:
    """Runs an example in a folder of its own, where a warning is an error; returns what it prints."""
    command = [sys.executable, "-W", "error", str(EXAMPLES / name), *arguments]
    environment = {**os.environ, "MPLBACKEND": "Agg"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # Processor time: on busy cores a minute on the clock may be twenty seconds of work.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 60
    return done.stdout


def numbers(pattern: str, text: str) -> list[float]:
    return [float(number) for number in re.findall(pattern, text)]


def assert_picture(path: Path) -> None:
    with Image.open(path) as picture:
        assert min(picture.size) > 100
        assert len(picture.getcolors(1 << 20)) > 10


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_short_and_with_its_own_command(path):
    code = path.read_text()
    assert len(code.splitlines()) <= 80
    assert f"\n    python examples/{path.name}" in code


@pytest.mark.slow
def test_train_classifier(tmp_path):
    printed = run("train_classifier.py", tmp_path, "--epochs", "8", "--plot", "rate.png")
    before, after = numbers(r"accuracy .*: (\S+)%", printed)
    (rate,) = numbers(r"learning rate found: (\S+)", printed)
    assert before < 30
    assert after > 96
    assert 1e-3 < rate < 0.3
    assert_picture(tmp_path / "rate.png")


@pytest.mark.slow
def test_train_language_model(tmp_path):
    """One that knew only how often each character occurs would have a loss of 3.2, their entropy."""
    printed = run("train_language_model.py", tmp_path)
    before, after = numbers(r"loss \w+: +(\S+)", printed)
    assert before > 4.5
    assert after < 1.7
    written = printed.split("\n", 2)[2]
    assert len(written) >= 300
    assert " the " in written


@pytest.mark.slow
def test_measure_network(tmp_path):
    printed = run("measure_network.py", tmp_path)
    hessian, ggn = re.split(r"(?=tr\(ggn\))", printed)
    for part, kind in ((hessian, "hessian"), (ggn, "ggn")):
        (value,) = numbers(rf"tr\({kind}\) = (\S+)", part)
        layers = numbers(r"  (?:conv1|conv2|head) +(\S+) \+-", part)
        assert len(layers) == 3
        assert sum(layers) == pytest.approx(value, abs=3e-4)
        assert re.search(rf"why: {re.search(r'[(](exact|activation)', part)[1]}: ", part)
    assert all(error > 0 for error in numbers(r"\+- (\S+)\n", hessian))
    assert all(error == 0 for error in numbers(r"\+- (\S+)\n", ggn))
    assert_picture(tmp_path / "curvature.png")


@pytest.mark.slow
def test_watch_sharpness(tmp_path):
    printed = run("watch_sharpness.py", tmp_path, "--steps", "100", "--lr", "0.5", "--out", "w.png")
    runs = json.loads((tmp_path / "w.json").read_text())
    assert list(runs) == ["constant", "reciprocal", "directional"]
    for seen in runs.values():
        assert seen["step"] == list(range(10, 101, 10))
        assert all(0.1 < sharpness < 100 for sharpness in seen["sharpness"])
        assert seen["loss"][-1] < 0.5 < seen["loss"][0]
    assert set(runs["constant"]["learning rate"]) == {0.5}
    assert all(0 < rate < 0.5 for rate in runs["reciprocal"]["learning rate"])
    # With a horizon of 100 it is nearly zero at the end, and was above what SGD got.
    found = runs["directional"]["learning rate"]
    assert found[-1] < 0.1 < 0.5 < max(found)
    told = numbers(r"loss (\S+),", printed)
    assert told == pytest.approx([seen["loss"][-1] for seen in runs.values()], abs=1e-4)
    assert len(numbers(r"2 / rate on (\d+)% of steps", printed)) == 3
    assert_picture(tmp_path / "w.png")

"""benchmarks/report.py --device: all of it runs, small and on the CPU, and says what it cannot do."""

from __future__ import annotations

import importlib
import json
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from tests.helpers import needs_native

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def on_device(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.on_device")


@pytest.mark.slow
@needs_native
def test_every_case_agrees_and_is_written(
    on_device: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cpu.json"
    assert on_device.run("cpu", out, **on_device.SMALL) == 0
    printed = capsys.readouterr().out
    assert "signed_sum, 5,000 x bfloat16" in printed
    assert "WRONG" not in printed
    outcomes = json.loads(out.read_text())["outcomes"]
    assert len(outcomes) == 18
    names = " ".join(each["name"] for each in outcomes)
    kernels = "".join(path.read_text() for path in (ROOT / "csrc" / "cuda").glob("*.cu"))
    for op in re.findall(r'm\.impl\("(\w+)"', kernels):
        assert op in names, op
    for what in (" float16", "bfloat16 autocast", "2 ranks", "reciprocal rule", "directional rule"):
        assert what in names, what
    assert all(each["agree"] and each["ratio"] > 0 for each in outcomes)


@needs_native
def test_a_wrong_result_fails(
    on_device: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Case = importlib.import_module("benchmarks.device_case").Case
    wrong = Case("wrong", lambda: None, lambda: None, lambda: False)
    monkeypatch.setattr(on_device, "op_cases", lambda device, numel: [wrong])
    monkeypatch.setattr(on_device, "step_cases", lambda device, width, steps: [])
    monkeypatch.setattr(on_device.device_ddp, "why_not", lambda device: "not here")
    assert on_device.run("cpu", tmp_path / "cpu.json", seconds=0.001) == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "report.py"), "--device", "cuda"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "torch.cuda.is_available() is False" in done.stderr

"""The training step on a GPU never waits for the host: no_wait.py, in a process that believes in a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from metacurv import native_available
from tests.cuda.emulation.build import run_on_stand_in


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: tests/cuda/test_training.py")
def test_training_steps_do_not_wait(tmp_path: Path) -> None:
    done = run_on_stand_in("no_wait.py", tmp_path)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    cases = {"twins": 10, "ops": 25 if native_available() else 0}
    assert {kernels: done.stdout.count(f", {kernels}\n") for kernels in cases} == cases

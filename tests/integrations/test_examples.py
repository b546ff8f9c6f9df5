"""The programs in examples/frameworks run as a reader would run them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "frameworks"
RUN: dict[str, list[str]] = {
    "accelerate_loop.py": ["--epochs", "4"],
    "fsdp2.py": ["--steps", "100"],
    "lightning_module.py": ["--epochs", "4"],
    "transformers_trainer.py": ["--steps", "60"],
}


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.name)
def test_it_is_short_and_trains(path: Path, tmp_path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
    start = [sys.executable]
    if path.name == "fsdp2.py":
        start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*start, str(path), *RUN[path.name]],
        cwd=tmp_path,
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    rates = [float(rate) for rate in re.findall(r"learning rate(?: found:)? (\S+)", done.stdout)]
    assert rates
    assert all(1e-4 < rate < 1 for rate in rates)
    accuracies = [float(a) for a in re.findall(r"accuracy (\S+)%", done.stdout)]
    losses = [
        float(loss)
        for loss in re.findall(r"loss(?: \w+:)? (\S+?)(?:,|$)", done.stdout, re.MULTILINE)
    ]
    assert accuracies[-1] > 90 if accuracies else losses[-1] < 0.8 * losses[0]

"""Every op under a sanitizer, and with stores that other blocks see late: exercise.py in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cuda.emulation.build import (
    HERE,
    RUNTIMES,
    build,
    environment,
    exercise_arguments,
)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address", "undefined", "delayed"])
def test_nothing_to_say(sanitizer: str, tmp_path: Path) -> None:
    library = build(tmp_path, sanitizer=sanitizer)
    # Threads do the same in all dtypes, and memory is touched alike where elements are of one size.
    dtypes = ["float32"] if sanitizer in ("thread", "delayed") else ["float64", "bfloat16"]
    options = [*exercise_arguments(sanitizer), "--dtypes", *dtypes]
    done = subprocess.run(
        [sys.executable, str(HERE / "exercise.py"), str(library), *options],
        env={**os.environ, **environment(sanitizer)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout == ""


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", RUNTIMES)
def test_exceptions_pass(sanitizer: str) -> None:
    """Some builds of torch throw while they are imported, and a launch that the emulator refuses is an exception."""
    code = """
import torch
try:
    torch.ones(2) + torch.ones(3)
except RuntimeError:
    print("caught")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment(sanitizer)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "caught\n", done.stderr[-3000:]

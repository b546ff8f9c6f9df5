"""Every op under a sanitizer, and with stores that other blocks see late: exercise.py in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.emulation.build import HERE, build, environment, exercise_arguments


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address", "undefined", "delayed"])
def test_nothing_to_say(sanitizer: str, tmp_path: Path) -> None:
    library = build(tmp_path, sanitizer=sanitizer)
    workers = exercise_arguments(sanitizer)
    done = subprocess.run(
        [sys.executable, str(HERE / "exercise.py"), str(library), *workers],
        env={**os.environ, **environment(sanitizer)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout == ""

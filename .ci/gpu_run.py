"""Runs one step of .ci/gpu within its time, and says how it ended."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_steps import ROOT, Step


@dataclass(frozen=True)
class Done:
    """How a step ended: "passed", "failed", "not run", or in a rehearsal "needs a GPU", and why."""

    step: Step
    outcome: str
    why: str = ""
    seconds: float = 0.0
    output: str = ""

    @property
    def is_well(self) -> bool:
        return self.outcome in ("passed", "needs a GPU")


def run(step: Step, environ: Mapping[str, str], *, left: float, rehearse: bool) -> Done:
    """Runs ``step``, for at most ``left`` seconds, if that is less than it may take."""
    if rehearse and step.needs_gpu:
        return Done(step, "needs a GPU")
    if left < 1:
        return Done(step, "not run", "the time for all steps together was over")
    started = time.monotonic()
    with tempfile.TemporaryFile() as printed:
        why = _why_not(step, environ, printed.fileno(), min(step.seconds, left), rehearse=rehearse)
        printed.seek(0)
        output = printed.read().decode(errors="replace")
    if not why and not re.search(step.expect, output, re.MULTILINE):
        why = f"its output has nothing like {step.expect!r}"
    seconds = time.monotonic() - started
    return Done(step, "failed" if why else "passed", why, seconds, output)


def _why_not(
    step: Step, environ: Mapping[str, str], output: int, seconds: float, *, rehearse: bool
) -> str:
    """Why ``step`` failed; "" where it ended with the status that it must."""
    command = step.command if rehearse else (*step.under, *step.command)
    try:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**environ, **dict(step.environ)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it has started ends with it
        )
    except OSError as error:
        return f"{Path(command[0]).name} does not run: {error}"
    try:
        status = process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return f"stopped after {seconds:.0f} s, which is all that it had"
    finally:
        _end(process)
    return "" if status == step.exit_code else f"status {status}, not {step.exit_code}"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends ``process`` and all that it left running."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()

"""What .ci/gpu leaves: gpu.json for programs, and gpu.txt with all that the steps printed."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from gpu_run import Done
from gpu_steps import ROOT

MOST = 500_000  # characters of a step's output; the end says more than the beginning
REHEARSED = "REHEARSAL: no GPU was used, and nothing here says anything about one."


def write(folder: Path, done: Sequence[Done], *, rehearse: bool) -> None:
    """Writes both files anew, so that they are there whatever stops the next step."""
    folder.mkdir(parents=True, exist_ok=True)
    written = datetime.now(timezone.utc).isoformat(timespec="seconds")
    head: dict[str, Any] = {
        "command": f".ci/gpu{' --rehearse' if rehearse else ''}",
        "written": written,
        "gpu_was_used": not rehearse,
        "commit": _commit(),
        "machine": platform.platform(),
        "passed": all(each.is_well for each in done),
        "seconds": round(sum(each.seconds for each in done), 1),
    }
    content = {**head, "steps": [_as_json(each, rehearse) for each in done]}
    (folder / "gpu.json").write_text(json.dumps(content, indent=1) + "\n")
    lines = [REHEARSED, ""] if rehearse else []
    lines += [f"{name}: {value}" for name, value in head.items()]
    lines += ["", *map(line, done)]
    for each in done:
        lines += [
            "",
            f"=== {each.step.name}",
            f"$ {command(each, rehearse)}",
            shortened(each.output),
        ]
    (folder / "gpu.txt").write_text("\n".join(lines) + "\n")


def line(done: Done) -> str:
    """One line of the summary."""
    why = f": {done.why}" if done.why else ""
    return f"{done.seconds:6.1f} s of {done.step.seconds:3}  {done.step.name}: {done.outcome}{why}"


def command(done: Done, rehearse: bool) -> str:
    """As one would type it; in a rehearsal with a note of what it would run under."""
    step = done.step
    environ = [f"{name}={value}" for name, value in step.environ]
    if rehearse and step.under:
        return (
            f"{shlex.join([*environ, *step.command])}  # with a GPU under: {shlex.join(step.under)}"
        )
    return shlex.join([*environ, *step.under, *step.command])


def shortened(output: str) -> str:
    """The end of ``output``, with a note of what was left out."""
    if len(output) <= MOST:
        return output
    return f"({len(output) - MOST} characters were left out)\n{output[-MOST:]}"


def _as_json(done: Done, rehearse: bool) -> dict[str, Any]:
    step = done.step
    found: dict[str, Any] = {
        "name": step.name,
        "command": command(done, rehearse),
        "outcome": done.outcome,
        "why": done.why,
        "seconds": round(done.seconds, 1),
        "seconds_allowed": step.seconds,
        "last_lines": done.output.splitlines()[-20:],
    }
    if step.result:
        found["result"] = _result(step.result)
    return found


def _result(path: Path) -> Any:
    """None where the step has not come so far, or was stopped while it wrote."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _commit() -> str:
    """Of the tree, where it is a clone and git is installed."""
    try:
        return subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"

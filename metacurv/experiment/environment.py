"""The environment that the numbers came from: software, machine, date."""

from __future__ import annotations

import platform
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

import metacurv
from metacurv.self_check.installed import cpu_name

# What may change the last digits of a number, or its seconds.
DECISIVE = ("python", "torch", "metacurv", "native", "cpu", "cpu_capability")


def describe(threads: int) -> dict[str, Any]:
    """The environment of this process, as environment.json holds it."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "metacurv": metacurv.__version__,
        "native": metacurv.native_available(),
        "build": metacurv.build_info(),
        "git_commit": git_commit(),
        "platform": platform.platform(),
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": threads,
    }


def changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """The decisive entries that differ: name -> [before, now]."""
    return {
        name: [before.get(name), now[name]] for name in DECISIVE if before.get(name) != now[name]
    }


def git_commit() -> str | None:
    """The commit of metacurv's source tree, "-dirty" where edited; None where it is not in one."""
    here = Path(__file__)
    try:
        _git(here.parent, "ls-files", "--error-unmatch", here.name)  # metacurv's own, not just any
        return _git(here.parent, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(
        command, capture_output=True, check=True, text=True, timeout=10
    ).stdout.strip()

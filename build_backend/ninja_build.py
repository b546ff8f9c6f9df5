"""Runs compilers through ninja, which runs only what is not up to date.

ninja compares command lines as well as the times of files. So what is no file of ours belongs into
the command line: versions of compilers and libraries, as a macro. The headers of those libraries
are left out of the comparison (-isystem with -MMD), since an isolated build has new ones each time.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Step:
    """One run of a compiler or linker.

    Attributes:
        command: what runs.
        inputs: files that it depends on, besides those that its ``depfile`` will list.
        output: the file that it makes.
        depfile: where it lists the headers that it has read, if it does.
    """

    command: Sequence[str]
    inputs: Sequence[Path]
    output: Path
    depfile: Path | None = None


def compilation(command: Sequence[str], source: Path, folder: Path) -> Step:
    """Compiles ``source``, a file of this project, with g++, clang++ or nvcc into ``folder``."""
    output = folder / f"{source.relative_to(ROOT)}.o"
    depfile = output.with_name(f"{output.name}.d")
    flags = ["-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(output)]
    return Step([*command, *flags], [source], output, depfile)


def run_ninja(steps: Sequence[Step], folder: Path) -> None:
    """Runs those of ``steps`` whose output is not up to date, in parallel, and keeps its log in ``folder``.

    Raises:
        RuntimeError: one of them failed; what it said was printed. Or there is no ninja.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lines = ["rule run", "  command = $line"]
    for step in steps:
        inputs = " ".join(map(_path, step.inputs))
        lines.append(f"build {_path(step.output)}: run {inputs}")
        lines.append(f"  line = {shlex.join(step.command).replace('$', '$$')}")
        if step.depfile:
            lines += [f"  depfile = {_path(step.depfile)}", "  deps = gcc"]
    (folder / "build.ninja").write_text("\n".join(lines) + "\n")

    jobs = os.environ.get("MAX_JOBS", "")
    limit = ["-j", jobs] if jobs.isdigit() else []
    # By its number: setuptools may have detached sys.stdout.
    try:
        done = subprocess.run(["ninja", "-v", *limit], cwd=folder, stdout=1, check=False)
    except FileNotFoundError as error:
        raise RuntimeError("there is no ninja: pip install ninja") from error
    if done.returncode:
        raise RuntimeError("ninja stopped at a command that failed; its messages are above")


def _path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))

"""Times of an installation from this tree, in a fresh virtual environment that already has torch.

Run from anywhere: python benchmarks/install_times.py

Prints a table and writes benchmarks/results/install.json and the table of
docs/start/install.md. CPU seconds are user and system time of pip and everything that it
starts; unlike seconds on the wall they depend little on what else runs. The exit status is 1
where they are above the most that they may be.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # run by its path, python sees this folder alone

from benchmarks.page_block import write_block  # noqa: E402

RESULT = ROOT / "benchmarks" / "results" / "install.json"
PAGE = ROOT / "docs" / "start" / "install.md"

NOT_COPIED = shutil.ignore_patterns(
    ".*", "build", "dist", "runs", "site", "*.so", "*.egg-info", "__pycache__"
)


class Case(NamedTuple):
    """One installation: ``before`` it other commands run unmeasured, in the same new copy of the tree."""

    name: str
    arguments: Sequence[str]
    most_cpu_seconds: float
    environ: Mapping[str, str] = {}
    before: Sequence[Sequence[str]] = ()


CASES = [
    Case("metacurv without nvcc", ["."], 60, {"CUDA_HOME": "/nonexistent"}),
    Case("metacurv with nvcc", ["."], 180, {"METACURV_CUDA": "1"}),
    # "Nothing is compiled" in seconds: pip, its build environment and setuptools.
    Case("metacurv a second time, nothing has changed", ["-e", "."], 10, before=[["-e", "."]]),
]


def timed(command: Sequence[str], folder: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """Runs ``command`` and returns its seconds and its output.

    Raises:
        RuntimeError: it failed; the message ends with what it said.
    """
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        command,
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    after, end = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "cpu_seconds": round(cpu, 1),
        "wall_seconds": round(end - start, 1),
        "output": done.stdout,
    }


def measure(case: Case, python: Path, folder: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """The times of ``case`` in a new copy of the tree, and what its build says that it made."""
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=NOT_COPIED)
    pip = [str(python), "-m", "pip", "install", "-v"]
    for arguments in case.before:
        timed([*pip, *arguments], tree, {**environ, **case.environ})
    times = timed([*pip, *case.arguments], tree, {**environ, **case.environ})
    shutil.rmtree(tree)
    built = [line.strip() for line in times.pop("output").splitlines() if "C++ kernels (" in line]
    return {
        "name": case.name,
        **times,
        "most_cpu_seconds": case.most_cpu_seconds,
        "built": built[-1],
    }


def report(torch: str) -> dict[str, Any]:
    """Measures everything in one temporary folder."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        environ = {key: value for key, value in os.environ.items() if "METACURV" not in key}
        environ |= {"METACURV_REQUIRE_NATIVE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        environ.pop("PYTHONPATH", None)
        install_torch = [str(python), "-m", "pip", "install", f"torch=={torch}"]
        of_torch = timed(install_torch, folder, environ)
        del of_torch["output"]
        ask = "import torch; print(torch.version.cuda or '')"
        cuda = subprocess.run([str(python), "-c", ask], capture_output=True, text=True, check=True)
        build = (
            f"its build for CUDA {cuda.stdout.strip()}" if cuda.stdout.strip() else "its CPU build"
        )
        installs = []
        for case in CASES:
            if "METACURV_CUDA" in case.environ and not shutil.which("nvcc"):
                print(f"{case.name}: left out, there is no nvcc on PATH", file=sys.stderr)
                continue
            installs.append(measure(case, python, folder, environ))
            print(line(installs[-1]), flush=True)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "cores": len(os.sched_getaffinity(0)),
        "load_at_end": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        "torch": {"name": f"torch {torch} by itself, {build}", **of_torch},
        "installs": installs,
    }


def line(install: Mapping[str, Any]) -> str:
    """One row of the table."""
    most = f"{install['most_cpu_seconds']:8.0f}" if "most_cpu_seconds" in install else " " * 8
    return f"{install['name']:<28}{install['cpu_seconds']:8.1f}{most}{install['wall_seconds']:8.1f}"


def page_table(result: Mapping[str, Any]) -> str:
    """The table of the installation page."""
    rows = [
        f"| {each['name']} | {each['cpu_seconds']:.0f} s | {each['wall_seconds']:.0f} s |"
        for each in (result["torch"], *result["installs"])
    ]
    where = f"{result['cores']} cores, load {result['load_at_end']:.1f}, {result['date']}."
    head = "| installation | processor time | time on the clock |"
    return "\n".join([head, "|---|---|---|", *rows, "", where])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--torch", default="2.13.0", help="version of torch to install first")
    parser.add_argument("--output", type=Path, default=RESULT, help="file for the result")
    arguments = parser.parse_args()
    print(f"{'seconds':<28}{'CPU':>8}{'at most':>8}{'wall':>8}", flush=True)
    result = report(arguments.torch)
    print(line(result["torch"]), "(torch itself, before all the others)")
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    if arguments.output == RESULT:
        write_block(PAGE, "install", page_table(result))
    above = [i for i in result["installs"] if i["cpu_seconds"] > i["most_cpu_seconds"]]
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())

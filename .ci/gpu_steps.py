"""The steps of .ci/gpu, in their order, and the seconds that each may take."""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gpu_wheels import WHEELS

ROOT = Path(__file__).resolve().parent.parent
HERE = ".ci"
FOUND = 9  # the status of compute-sanitizer where it has found a fault

# Our kernels alone, by their namespace: torch's would take minutes.
OURS = ("--kernel-name", "kernel_substring=metacurv")
# Left out: graphs, which cannot be captured without torch's cache of memory, on which memcheck would see no bounds; what is
# about time; and sizes that add blocks of the same kind.
NOT_SANITIZED = ("captured", "waits", "stream", "elements", "100003", "20000001", "[1000]")

SEES_A_GPU = """
import metacurv, torch
print("torch", torch.__version__, "for CUDA", torch.version.cuda, "and", metacurv.build_info())
assert metacurv.cuda_compiled(), "the CUDA kernels are not in this build"
if torch.cuda.is_available():
    print("GPU:", torch.cuda.get_device_name(), torch.cuda.get_device_capability())
else:
    print("no GPU: torch.cuda.is_available() is False")
"""


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        seconds: that it may take.
        expect: a regular expression that its output must match somewhere.
        exit_code: the status that it must end with.
        under: a command that runs ``command``, left away in a rehearsal.
        needs_gpu: in a rehearsal it is only named.
        environ: variables that it gets.
        result: a JSON file that it writes.
    """

    name: str
    command: Sequence[str]
    seconds: int
    expect: str = ""
    exit_code: int = 0
    under: Sequence[str] = ()
    needs_gpu: bool = False
    environ: tuple[tuple[str, str], ...] = ()
    result: Path | None = None


@dataclass(frozen=True)
class Tool:
    """A tool of compute-sanitizer: its own options, what it says of the planted fault, and where it found none."""

    name: str
    options: tuple[str, ...]
    found: str
    clean: str


MEMCHECK = Tool(
    "memcheck",
    # torch asks the driver for things that it refuses, and goes on. Padding: beyond one tensor must not begin another.
    ("--report-api-errors", "no", "--padding", "8192"),
    "Invalid __global__ write",
    "ERROR SUMMARY: 0 errors",
)
RACECHECK = Tool(
    "racecheck", (), "RACECHECK SUMMARY: [1-9]", "RACECHECK SUMMARY: 0 hazards displayed"
)


def steps(work: Path, wheelhouse: Path, *, rehearse: bool) -> list[Step]:
    """All of them; ``work`` is for what they leave to each other."""
    python = str(work / "venv" / "bin" / "python")
    pip = (python, "-m", "pip", "install", "--no-index", "--no-deps")
    passes = r"^=* ?\d+ skipped" if rehearse else r"\d+ passed"
    planted = str(work / "planted")
    todo = [
        Step("environment", (sys.executable, f"{HERE}/gpu_environment.py", str(work / "venv")), 15),
        Step("wheels", (*pip, "--find-links", str(wheelhouse), *WHEELS), 20),
        Step(
            "build for this card",
            (*pip, "--no-build-isolation", "-v", "-e", "."),
            80,
            expect="and CUDA kernels for",
            environ=(("METACURV_CUDA", "1"), ("METACURV_REQUIRE_NATIVE", "1")),
        ),
        Step("GPU", (python, "-c", SEES_A_GPU), 15, expect="^no GPU" if rehearse else "^GPU:"),
        Step("self-check", (python, "-m", "metacurv"), 20, expect="checks passed"),
        Step("pytest -m gpu", _pytest(python, *gpu_tests(), workers=_workers()), 85, expect=passes),
        Step("planted faults", (_cuda("nvcc"), "-o", planted, f"{HERE}/gpu_planted.cu"), 15),
        _sees(planted, MEMCHECK),
        _sees(planted, RACECHECK),
        _sanitized(python, MEMCHECK, 65, passes, rehearse, PYTORCH_NO_CUDA_MEMORY_CACHING="1"),
        _sanitized(python, RACECHECK, 40, passes, rehearse),
        _measured(python, work / "ops.json", "ops and training steps", "report.py", 75, rehearse),
        _measured(python, work / "traces.json", "traces", "device_traces.py", 85, rehearse),
    ]
    # A machine for rehearsals may have two cores, and others' work on them.
    return [replace(step, seconds=5 * step.seconds) for step in todo] if rehearse else todo


def gpu_tests() -> list[str]:
    """The files with tests of mark gpu. Others are not collected: some need packages that are not carried."""
    marks = re.compile(r"\bDEVICES\b|\bmark\.gpu\b|\bneeds_gpu\b")
    files = sorted(
        path for room in ("ops", "cuda") for path in (ROOT / "tests" / room).glob("test_*.py")
    )
    found = (path for path in files if marks.search(path.read_text()))
    return [path.relative_to(ROOT).as_posix() for path in found]


def _workers() -> int:
    """Processes for pytest, 0 for none beside it. Each has a CUDA context and collects all tests, so there are few."""
    return min(8, (os.cpu_count() or 1) // 4 * 2)


def _pytest(python: str, *arguments: str, workers: int = 0) -> tuple[str, ...]:
    options = f"-q -m gpu -n {workers} --durations=10".split()
    return (python, "-m", "pytest", *options, *arguments)


def _sanitizer(tool: Tool) -> tuple[str, ...]:
    status = ("--error-exitcode", str(FOUND))
    return (_cuda("compute-sanitizer"), "--tool", tool.name, *tool.options, *status, *OURS)


def _sees(program: str, tool: Tool) -> Step:
    name, command = f"{tool.name} sees a planted fault", (*_sanitizer(tool), program, tool.name)
    return Step(name, command, 10, tool.found, exit_code=FOUND, needs_gpu=True)


def _sanitized(
    python: str, tool: Tool, seconds: int, passes: str, rehearse: bool, **environ: str
) -> Step:
    chosen = ("tests/cuda/test_ops.py", "-k", " and ".join(f"not {each}" for each in NOT_SANITIZED))
    return Step(
        f"{tool.name} of the ops",
        _pytest(python, *chosen),
        seconds,
        expect=passes if rehearse else rf"{passes}[\s\S]*{tool.clean}",
        under=_sanitizer(tool),
        needs_gpu=tool is RACECHECK,  # memcheck's step rehearses the same tests
        environ=tuple(environ.items()),
    )


def _measured(
    python: str, result: Path, what: str, script: str, seconds: int, rehearse: bool
) -> Step:
    where = ("--device", "cpu", "--small") if rehearse else ("--device", "cuda")
    command = (python, f"benchmarks/{script}", *where, "--output", str(result))
    return Step(f"benchmark: {what}", command, seconds, result=result)


def _cuda(name: str) -> str:
    """The tool ``name`` of the CUDA toolkit; its bare name, which then fails to run, where it is not found."""
    homes = [os.environ.get("CUDA_HOME", ""), "/usr/local/cuda"]
    folders = [os.environ.get("PATH", os.defpath), *(f"{home}/bin" for home in homes if home)]
    return shutil.which(name, path=os.pathsep.join(folders)) or name

"""Everything that only a GPU can tell, in one command and under 9 minutes on 16 cores.

Needs a GPU, its driver, the CUDA toolkit with nvcc and compute-sanitizer, a C++ compiler, and a Python with torch, numpy and
pip. It needs no network: --wheels says what to carry. It compiles for the card that is there, runs pytest -m gpu,
compute-sanitizer on the op tests, and the benchmarks against torch and against compiled Hessian-vector products. A step that
fails makes the exit status 1 and stops no other. What came of it is in gpu.json and gpu.txt.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import sysconfig
import time
from collections.abc import Sequence
from pathlib import Path

import gpu_report
from gpu_run import Done, run
from gpu_steps import ROOT, Step, steps
from gpu_wheels import advice, check

SECONDS = 535  # for all steps together; a rehearsal, which may have two cores, is not bound by it
WORK = ROOT / "build" / "gpu"
WHEELHOUSE = ROOT / "build" / "wheels"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=".ci/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--wheels", action="store_true", help="print which wheels to carry, as a shell script"
    )
    parser.add_argument(
        "--wheelhouse",
        type=Path,
        default=WHEELHOUSE,
        metavar="DIR",
        help="where these wheels are (default: build/wheels)",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(os.environ.get("OUT") or ROOT / "runs" / "gpu"),
        metavar="DIR",
        help="folder for gpu.json and gpu.txt (default: $OUT, else runs/gpu)",
    )
    parser.add_argument(
        "--rehearse",
        action="store_true",
        help="the same steps without a GPU: kernels are compiled, tests collected and skipped, benchmarks run small on the "
        "CPU, and what needs a GPU is only named",
    )
    return parser.parse_args(arguments)


def run_all(todo: Sequence[Step], output: Path, *, seconds: float, rehearse: bool) -> bool:
    """Runs ``todo``, reports after each step, and returns whether all is well."""
    end = time.monotonic() + seconds
    venv = WORK / "venv"
    # What pip finds beside this Python it does not install again, so ninja may be there.
    path = (str(venv / "bin"), sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))
    environ = {name: value for name, value in os.environ.items() if not name.startswith("METACURV")}
    environ |= {"VIRTUAL_ENV": str(venv), "PATH": os.pathsep.join(path)}
    if rehearse:
        environ["CUDA_VISIBLE_DEVICES"] = ""
    done: list[Done] = []
    for step in todo:
        done.append(run(step, environ, left=end - time.monotonic(), rehearse=rehearse))
        gpu_report.write(output, done, rehearse=rehearse)
        print(gpu_report.line(done[-1]), flush=True)
        if not done[-1].is_well:
            print(*done[-1].output.splitlines()[-30:], sep="\n", flush=True)
    return all(each.is_well for each in done)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    wheelhouse = options.wheelhouse.absolute()
    if options.wheels:
        print(advice(wheelhouse), end="")
        return 0
    if wrong := check(wheelhouse):
        print(f".ci/gpu: {wrong}", file=sys.stderr)
        return 2
    shutil.rmtree(
        WORK, ignore_errors=True
    )  # results of an earlier run must not pass for this one's
    WORK.mkdir(parents=True)
    rehearse, output = options.rehearse, options.output.absolute()
    if rehearse:
        print(gpu_report.REHEARSED)
    todo = steps(WORK, wheelhouse, rehearse=rehearse)
    seconds = sum(step.seconds for step in todo) if rehearse else SECONDS
    is_well = run_all(todo, output, seconds=seconds, rehearse=rehearse)
    print(f"{'passed' if is_well else 'FAILED'}; {output}/gpu.txt and gpu.json say more")
    return 0 if is_well else 1


if __name__ == "__main__":
    sys.exit(main())

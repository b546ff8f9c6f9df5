"""The command ``python -m metacurv`` prints what is installed, and checks that it works."""

from __future__ import annotations

import argparse
import sys
import textwrap
import time
from collections.abc import Sequence

import torch

from metacurv.self_check.checks import Check, whole_checks
from metacurv.self_check.installed import installed
from metacurv.self_check.op_checks import has_kernels, op_checks

_DESCRIPTION = """
Prints what is installed (versions, compiled kernels, instruction set, CUDA), and checks in a few seconds that it works:
the result of every op is compared with numbers worked out by hand, and that of its compiled kernel with that of its torch
twin; the trace of a small Hessian with the matrix written out; and each learning-rate rule trains a small network. The
checks run on the CPU, and on every GPU that torch sees. (What was verified of the CUDA kernels: docs/cuda.md.)

The exit status is 0 where everything is well, and 1 where a check failed. Paste the whole output into a bug report.
"""

_COMPARED = "Each op: its compiled kernel and its torch twin against numbers worked out by hand, and against each other."
_TWINS_ALONE = (
    "No kernels are loaded for this device, so there is nothing to compare the torch twins with. Each op: its twin "
    "against numbers worked out by hand."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command, and returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m metacurv",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.parse_args(arguments)
    lines = installed()
    width = max(len(name) for name, _ in lines) + 2
    for name, value in lines:
        print(f"{name:{width}}{value}")
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    started = time.process_time()
    outcomes = [failed for device in devices for failed in _run(device)]
    seconds = time.process_time() - started
    n, failures = len(outcomes), sum(outcomes)
    verdict = f"{failures} of {n} checks FAILED" if failures else f"all {n} checks passed"
    print(f"\n{verdict} ({seconds:.1f} s of CPU time)")
    return 1 if failures else 0


def checks(device: torch.device) -> list[Check]:
    """Lists the checks on a device, from the generator of random numbers to a training."""
    backend = "native" if has_kernels(device) else "reference"
    return op_checks(device) + whole_checks(backend, device)


def _run(device: torch.device) -> list[bool]:
    """Prints a line for each check, and returns which of them failed."""
    print(f"\nself-check on {device}")
    explanation = _COMPARED if has_kernels(device) else _TWINS_ALONE
    print(f"{textwrap.fill(explanation, 100)}\n")
    todo = checks(device)
    width = max(len(check.name) for check in todo) + 2
    failed = []
    for check in todo:
        failure = check.failure()
        print(f"{check.name:{width}}{f'FAILED: {failure}' if failure else 'ok'}", flush=True)
        failed.append(bool(failure))
    return failed


if __name__ == "__main__":
    sys.exit(main())

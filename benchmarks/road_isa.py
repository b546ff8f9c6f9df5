"""The instruction sets as roads: each side is a process of its own, since a process chooses its kernels once.

    python -m benchmarks.road_isa

serves one side: a line of JSON in, {"line": NAME, "calls": N} (no calls: the number of a first call), a line with a float out.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor

from benchmarks.lines import LARGE, SMALL
from benchmarks.page_block import ROOT
from benchmarks.process import settle
from benchmarks.road_calls import RELU, estimate_trace, hessian_trace, workload
from benchmarks.road_case import Call, Case, Here, Row, compare

# The wide kernels, and what would run instead.
ISA_ROADS = {"avx512": "avx2", "avx2": "baseline"}


def isa_cases() -> Iterator[Case]:
    """The lines on which the instruction set may matter."""
    for net in (SMALL, LARGE):
        for k in (1, 16):
            yield Case(f"hessian_trace, {net}, K = {k}", hessian_trace(workload(net), k))
    for method, k in (("exact", 1), ("activation", 1), ("activation", 16)):
        make = estimate_trace(workload(RELU), "hessian", method, k)
        yield Case(f"{method}, hessian, {RELU}, K = {k}", make)
    # 2^26 of float64 would take half a gigabyte on each side.
    for exponent, dtype in ((20, torch.float32), (26, torch.float32), (20, torch.float64)):
        size, has_line = f"2^{exponent} {str(dtype)[6:]}", dtype == torch.float32
        yield Case(
            f"signed_sum, {size}", partial(signed_sum_of, 1 << exponent, dtype), in_table=has_line
        )
        if exponent == 20:
            make = partial(rademacher_of, 1 << exponent, dtype)
            yield Case(f"rademacher_, {size}", make, in_table=has_line)


def signed_sum_of(n: int, dtype: torch.dtype) -> Call:
    from metacurv import ops

    x = torch.ones(n, dtype=dtype)
    return lambda: ops.signed_sum([x], seed=0, probe=1)


def rademacher_of(n: int, dtype: torch.dtype) -> Call:
    from metacurv import ops

    x = torch.ones(n, dtype=dtype)

    def fill() -> Tensor:
        ops.rademacher_([x], seed=0, probe=1)
        return x

    return fill


class There:
    """A side in a process of its own."""

    def __init__(self, child: subprocess.Popen[str], line: str) -> None:
        self._child = child
        self._line = line

    def _ask(self, calls: int) -> float:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._child.stdin.write(json.dumps({"line": self._line, "calls": calls}) + "\n")
        self._child.stdin.flush()
        return float(self._child.stdout.readline())

    def value(self) -> float:
        return self._ask(0)

    def turn(self, calls: int) -> float:
        return self._ask(calls)


@contextmanager
def child(arguments: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[str]]:
    """A process of Python with these arguments, which is to run ``serve``."""
    with subprocess.Popen(
        [sys.executable, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environ,
    ) as process:
        yield process


def _environ(isa: str) -> dict[str, str]:
    return {**os.environ, "METACURV_CPU_ISA": isa, "PYTHONPATH": str(ROOT)}


def runs(isa: str) -> bool:
    """Tells whether this CPU runs the kernels of an instruction set."""
    code = "import metacurv; metacurv.build_info()"
    done = subprocess.run(
        [sys.executable, "-c", code], env=_environ(isa), capture_output=True, check=False
    )
    return done.returncode == 0


def measure_isa(isa: str, repeats: int) -> Iterator[Row]:
    """Compares an instruction set with the next narrower one."""
    if not runs(isa):
        yield Row("all lines", in_table=True, note=f"not measured: this CPU does not run {isa}")
        return
    with ExitStack() as stack:
        on, off = (
            stack.enter_context(child(["-m", "benchmarks.road_isa"], _environ(each)))
            for each in (isa, ISA_ROADS[isa])
        )
        for case in isa_cases():
            yield compare(case, There(on, case.line), There(off, case.line), repeats)


def serve(cases: Callable[[], Iterator[Case]]) -> None:
    """Answers until the input ends."""
    settle()
    makes: dict[str, Callable[[], Call]] = {case.line: case.make for case in cases()}
    sides: dict[str, Here] = {}
    for request in map(json.loads, sys.stdin):
        line, calls = request["line"], request["calls"]
        if line not in sides:
            sides[line] = Here(makes[line], nullcontext)
        side = sides[line]
        print(side.turn(calls) if calls else side.value(), flush=True)


if __name__ == "__main__":
    serve(isa_cases)

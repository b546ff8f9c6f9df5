"""Plants faults in copies of the CUDA sources and says which check sees each: python tests/cuda/emulation/mutants.py

Faults, in the kernels, in the formulas they share with the CPU and in the code that launches them: every barrier left out,
every shuffle's mask cut, every comparison shifted by one or turned round, every "+ 1" and "- 1" dropped, every index one
further, every product of indices in 32 bits, every sum overwritten instead of added to, every choice by a flag turned round,
every count left out, every guarded return taken out. Checks, cheapest first: the compiler;
under six schedules ("exercise.py") the emulator, which sees threads that wait in vain, wrong masks and places that do not
exist, and the comparison with the twins; launches counted by hand, and single blocks of large ones ("test_launches.py"); the
first again under AddressSanitizer and ThreadSanitizer. Prints a line a fault, saves a table, and exits with 1 when a fault
survives all of them. With --keep the rows of the files and kinds that were run go into tests/cuda/emulation/mutants.md, which a
test compares with the sources; rows of lines that are gone leave it.

Some changes are no faults: they are listed in planted.py, each with its reason, and are not planted.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[2]))

from tests.cuda.emulation.build import (  # noqa: E402
    LIBRARY,
    SOURCES,
    BuildError,
    build,
    environment,
    exercise_arguments,
)
from tests.cuda.emulation.mutant_table import KEPT, Row, read, to_markdown  # noqa: E402
from tests.cuda.emulation.planted import (  # noqa: E402
    EQUIVALENT,
    Fault,
    faults,
    invisible,
    is_equivalent,
    users,
)

CHECKS = {"values": "", "launches": "", "AddressSanitizer": "address", "ThreadSanitizer": "thread"}
# What is printed where something was seen, the more telling first.
_FAILED = {
    "launches": {"launches": r"^\d+ failed"},
    "exercise": {
        "values": "not what the twin gives",
        "emulator": "could not be launched",
        "refusal": r"Schedule\(",
    },
}
# What a sanitizer says where it found something, not where it could not work, as without memory.
_FOUND = {
    "AddressSanitizer": r"ERROR: AddressSanitizer: (?!out-of-memory|allocation-size)",
    "ThreadSanitizer": r"WARNING: ThreadSanitizer: data race|ERROR: ThreadSanitizer: SEGV",
}
# How a faulty program ends itself; other signals, as for want of memory or by hand, come from outside.
_OF_ITS_OWN = (signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL)
_PATIENCE = 4  # times what all cases take with the sources as they are


@dataclass(frozen=True)
class AsItIs:
    """The sources without a fault, as a check knows them: their objects, and what it takes for them."""

    objects: Path
    seconds: float
    dtypes: Sequence[str]  # of the ops that it runs; none: all


def caught_by(fault: Fault, folder: Path, as_it_is: dict[str, AsItIs]) -> str:
    """What saw the fault first; "" for nothing.

    Args:
        folder: scratch.
        as_it_is: by check: those to be asked.
    """
    csrc = folder / "csrc"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, csrc)
    path = next(csrc.rglob(fault.file))
    lines = path.read_text().splitlines()
    assert lines[fault.line - 1] == fault.before
    lines[fault.line - 1] = fault.after
    path.write_text("\n".join(lines) + "\n")
    changed = users(fault.file)
    for check, known in as_it_is.items():
        target = folder / f"build{CHECKS[check]}"
        if not target.exists():
            shutil.copytree(known.objects, target)
            try:
                build(target, csrc=csrc, sanitizer=CHECKS[check], only=changed)
            except BuildError as refused:
                return compiler_verdict(refused)
        longest = _PATIENCE * known.seconds
        if seen := ask(check, target / LIBRARY, changed, longest, known.dtypes):
            return seen
    return ""


def ask(
    check: str,
    library: Path,
    only: Sequence[str] = (),
    longest: float | None = None,
    dtypes: Sequence[str] = (),
) -> str:
    """What the check sees in ``longest`` seconds, by the cases that run the .cu files ``only``; none: by all of them.

    ``dtypes``: only those of the ops; none: all.

    Raises:
        RuntimeError: the check ended otherwise than by finding something.
    """
    sanitizer = CHECKS[check]
    if check == "launches":
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
        command.append(str(HERE / "test_launches.py"))
    else:
        command = [sys.executable, str(HERE / "exercise.py"), str(library), "--first"]
        command += ["--only", *only] if only else []
        command += exercise_arguments(sanitizer)
        command += ["--dtypes", *dtypes] if dtypes else []
    variables = {**os.environ, **environment(sanitizer), "METACURV_EMULATED_LIBRARY": str(library)}
    try:
        done = subprocess.run(
            command,
            env=variables,
            capture_output=True,
            text=True,
            timeout=longest,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{check}: without an end"
    return verdict(check, done)


def compiler_verdict(refused: BuildError) -> str:
    """That the compiler saw the fault.

    Raises:
        RuntimeError: it ended otherwise than by refusing a line of a source.
    """
    said = str(refused)
    if (
        re.search(r"\.(cuh?|h|cpp):\d+:\d+: error: ", said)
        and "internal compiler error" not in said
    ):
        return "compiler"
    raise RuntimeError(f"the compiler did not run:\n{said[-2000:]}")


def verdict(check: str, done: subprocess.CompletedProcess[str]) -> str:
    """What was seen, by how the check's process ended.

    Raises:
        RuntimeError: it ended otherwise than by finding something or nothing.
    """
    if done.returncode == 0:
        return ""
    if -done.returncode in _OF_ITS_OWN:
        return f"{check}: {signal.Signals(-done.returncode).name}"
    if "runtime error: " in done.stderr:
        return "bounds and alignment"
    for sanitizer, text in _FOUND.items():
        if re.search(text, done.stderr):
            return sanitizer
    failed = _FAILED["launches" if check == "launches" else "exercise"]
    for what, text in failed.items():
        if re.search(text, done.stdout, re.MULTILINE):
            return what
    raise RuntimeError(f"{check} did not run:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def main() -> int:
    parser = _parser()
    arguments = parser.parse_args()
    partly = arguments.every > 1 or len(arguments.checks) < len(CHECKS) or arguments.dtypes
    if arguments.keep and (partly or arguments.invisible):
        parser.error("--keep is for all faults of a kind and all checks")
    chosen = [
        fault
        for fault in faults()
        if (not arguments.file or fault.file in arguments.file)
        and (not arguments.kind or any(kind in fault.kind for kind in arguments.kind))
        and not is_equivalent(fault)
    ]
    if arguments.missing:
        wanted = _not_in_the_table(chosen)
        chosen = [fault for fault in chosen if (fault.file, fault.kind) in wanted]
    chosen = chosen[:: arguments.every]
    if arguments.invisible:
        chosen = [*chosen, invisible()] if arguments.file or arguments.kind else [invisible()]
    if arguments.list:
        for fault in chosen:
            print(f"{fault.place:28} {fault.kind:24} {fault.code}")
        print(f"{len(chosen)} faults; {len(EQUIVALENT)} changes that are none are not among them")
        return 0
    rows = _plant(chosen, arguments.checks, arguments.dtypes, arguments.jobs, arguments.out)
    if arguments.keep:
        anew = {(row.file, row.kind) for row in rows}
        there = {(fault.file, fault.kind, fault.code) for fault in faults()}  # lines go, too
        as_before = (
            row
            for row in read(KEPT)
            if (row.file, row.kind) not in anew and (row.file, row.kind, row.code) in there
        )
        KEPT.write_text(to_markdown([*as_before, *rows]))
    survivors = sum(not row.caught_by for row in rows)
    print(f"{len(chosen)} faults planted, {survivors} survived; {arguments.out}")
    return 1 if survivors else 0


def _plant(
    chosen: Sequence[Fault], checks: Sequence[str], dtypes: Sequence[str], jobs: int, out: Path
) -> list[Row]:
    """``jobs`` at a time; a line for each, and what is known so far in ``out``."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch, ThreadPoolExecutor(jobs) as pool:
        as_it_is = _as_they_are(Path(scratch), checks, dtypes)

        def seen_by(fault: Fault) -> str:
            return caught_by(fault, Path(scratch) / f"planted-{threading.get_ident()}", as_it_is)

        for fault, seen in zip(chosen, pool.map(seen_by, chosen), strict=True):
            rows.append(Row(fault.file, fault.line, fault.kind, fault.code, seen))
            out.write_text(to_markdown(rows))
            count = f"[{len(rows)}/{len(chosen)}]"
            print(
                f"{count} {fault.place:26} {fault.kind:24} {seen or '*** SURVIVES ***'}", flush=True
            )
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--file", action="append", metavar="NAME", help="only faults in this file of csrc"
    )
    parser.add_argument(
        "--kind", action="append", metavar="TEXT", help="only kinds that contain this, such as sync"
    )
    parser.add_argument(
        "--missing",
        action="store_true",
        help="only files and kinds of which tests/cuda/emulation/mutants.md has not all, or lines that are no more",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="faults at a time")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th fault")
    parser.add_argument(
        "--checks", nargs="+", choices=CHECKS, default=list(CHECKS), help="only these"
    )
    parser.add_argument(
        "--dtypes",
        nargs="+",
        default=[],
        metavar="NAME",
        help="only ops of these dtypes, such as float32",
    )
    parser.add_argument(
        "--invisible",
        action="store_true",
        help="plant a change that is no fault: alone, or beside the files and kinds named; it must survive",
    )
    parser.add_argument("--list", action="store_true", help="list them and plant nothing")
    parser.add_argument(
        "--keep", action="store_true", help="put the rows into tests/cuda/emulation/mutants.md"
    )
    parser.add_argument("--out", type=Path, default=Path("runs") / "mutants.md", metavar="FILE")
    return parser


def _not_in_the_table(chosen: Sequence[Fault]) -> set[tuple[str, str]]:
    """Files and kinds."""
    kept = Counter((row.file, row.kind, row.code) for row in read(KEPT) if row.caught_by)
    now = Counter((fault.file, fault.kind, fault.code) for fault in chosen)
    return {(file, kind) for file, kind, _ in (kept - now) + (now - kept)}


def _as_they_are(scratch: Path, checks: Sequence[str], dtypes: Sequence[str]) -> dict[str, AsItIs]:
    """The sources without a fault, by check; the program ends here where a check sees one."""
    known = {}
    for check in (check for check in CHECKS if check in checks):
        folder = scratch / f"as-it-is{CHECKS[check]}"
        build(folder, sanitizer=CHECKS[check], only=())
        started = time.monotonic()
        if seen := ask(check, folder / LIBRARY, dtypes=dtypes):
            sys.exit(f"error: {check} sees something in the sources as they are: {seen}")
        known[check] = AsItIs(folder, time.monotonic() - started, dtypes)
    return known


if __name__ == "__main__":
    sys.exit(main())

"""Plants faults in copies of the CUDA sources and says which check sees each: python tests/emulation/mutants.py

Faults, in the kernels and in the code that launches them: every barrier left out, every shuffle's mask cut, every
comparison shifted by one or turned round, every "+ 1" and "- 1" dropped, every sum overwritten instead of added to, every
guarded return taken out. Checks, cheapest first: the compiler; under six schedules ("exercise.py") the emulator, which sees
threads that wait in vain, wrong masks and places that do not exist, and the comparison with the twins; launches counted by
hand ("test_launches.py"); the first again under AddressSanitizer and ThreadSanitizer. Prints a table as it goes and saves
it; exits with 1 when a fault survives all of them.

Some changes are no faults: they are listed in EQUIVALENT, each with its reason, and are not planted.
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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.emulation.build import (  # noqa: E402
    LIBRARY,
    SOURCES,
    BuildError,
    build,
    environment,
    exercise_arguments,
)

KERNELS = SOURCES / "cuda"
CHECKS = {"values": "", "launches": "", "AddressSanitizer": "address", "ThreadSanitizer": "thread"}
LONGEST = {"": 300, "address": 900, "thread": 900}  # seconds, several times what the sources take
_SHIFTED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}

_SAME_AT_EQUALITY = "both branches give the same number where the two are equal"
_LARGEST = "refuses a grid of 2^31 - 1 blocks too: memory for one is out of reach here"
# (file, beginning of the line, to its end where that is \n, kind) -> why the change is no fault
EQUIVALENT = {
    ("finish_sums.cuh", "if (end - begin > kLongRange)", "> as >="): "a range of that length is added twice, to the same sum",
    ("launch_plan.h", "if (view.is_contiguous() || view.numel <=", "<= as <"): "cuts a tensor that would have fitted",
    ("launch_plan.h", "STD_TORCH_CHECK(tiles <=", "<= as <"): _LARGEST,
    ("rademacher.cu", "return;\n", "no return"): "there are no launches to make",
    ("rademacher.cuh", "return;\n", "no return"): "an empty tile is walked over in vain",
    ("row_products.cu", "STD_TORCH_CHECK(blocks <=", "<= as <"): _LARGEST,
    ("softmax_factor.cu", "STD_TORCH_CHECK(blocks <=", "<= as <"): _LARGEST,
    ("softmax_factor.cuh", "return;\n", "no return"): "words that are there are made again",
    ("softmax_factor.cuh", "const int first = start < 0", "< as <="): _SAME_AT_EQUALITY,
    ("softmax_factor.cuh", "static_cast<int>(end - origin", "< as <="): _SAME_AT_EQUALITY,
    ("softmax_factor.cuh", "for (; origin < end;", "< as <="): "one more turn, of a piece with no element of the row",
    ("softmax_factor.cuh", "for (int step = 0; step < kPieceWords", "< as <="): "no element of the piece is that far",
    ("step_line.cuh", "const int elements = left", "< as <="): _SAME_AT_EQUALITY,
    ("step_plan.h", "STD_TORCH_CHECK(tiles <=", "<= as <"): _LARGEST,
    ("tensor_table.cuh", "for (int d = tensor.first_dimension", "> as >="): "the last quotient is 0 then, and the sum the same",
    ("warp_tile.cuh", "const uint64_t first", "> as >="): _SAME_AT_EQUALITY,
    ("warp_tile.cuh", "const uint64_t last", "> as >="): _SAME_AT_EQUALITY,
    ("warp_tile.cuh", "return {begin, static_cast<int>(first", "< as <="): _SAME_AT_EQUALITY,
    ("warp_tile.cuh", "static_cast<int>(last", "< as <="): _SAME_AT_EQUALITY,
    ("warp_tile.cuh", "if (first_step < last_step)", "< as <="): "no packs, at an aligned place: the two parts meet there",
    ("warp_tile.cuh", "for (int row = first / kRow;", "< as <="): "one more row, of which no element is in the tile",
}  # fmt: skip


@dataclass(frozen=True)
class Fault:
    """One line of one file, replaced."""

    file: str
    line: int
    kind: str
    before: str
    after: str

    @property
    def place(self) -> str:
        """For the table."""
        return f"{self.file}:{self.line}"


def sources() -> list[Path]:
    """Kernels and their launch code."""
    return sorted(path for path in KERNELS.iterdir() if path.suffix in (".cuh", ".h", ".cu"))


def faults() -> Iterator[Fault]:
    """All that can be planted, file by file."""
    for path in sources():
        for number, line in enumerate(path.read_text().splitlines(), 1):
            code = line.partition("//")[0]
            if not code.strip() or code.lstrip().startswith(("#", "static_assert", "template")):
                continue
            for kind, changed in _changes(code):
                yield Fault(path.name, number, kind, line, changed)


def is_equivalent(fault: Fault) -> bool:
    """Whether it is no fault, by the list."""
    return any(
        (file, kind) == (fault.file, fault.kind) and f"{fault.before.strip()}\n".startswith(line)
        for file, line, kind in EQUIVALENT
    )


def _changes(code: str) -> Iterator[tuple[str, str]]:
    """Ways to break one line."""
    for barrier in ("__syncthreads();", "__syncwarp();"):
        if barrier in code:
            yield f"no {barrier[:-3]}", code.replace(barrier, "")
    if "0xffffffffu" in code:
        yield "a lane less in the mask", code.replace("0xffffffffu", "0x7fffffffu")
    if "+=" in code and "for (" not in code:
        yield "overwritten, not added", code.replace("+=", "=")
    if "constexpr" not in code:
        for match in re.finditer(r"(?<=[\w\)\]] )(<=|>=|==|!=|<|>)(?= [\w\(-])", code):
            other = _SHIFTED[match[0]]
            yield f"{match[0]} as {other}", code[: match.start()] + other + code[match.end() :]
    for match in re.finditer(r" [+-] 1(?![\w.])", code):
        yield f"no{match[0]}", code[: match.start()] + code[match.end() :]
    for match in re.finditer(r"\b(lane|thread|start|tile|warp_begin) \+ ", code):
        yield f"no {match[1]} +", code[: match.start()] + code[match.end() :]
    if code.strip() == "return;":
        yield "no return", code.replace("return;", "")


def invisible() -> Fault:
    """A change that is none, so that no check can see it."""
    path = KERNELS / "rademacher.cuh"
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.startswith("namespace"):
            return Fault(path.name, number, "no fault at all", line, line + "  // the same")
    raise LookupError(f"{path} has no namespace")


def users(header: str) -> list[str]:
    """Stems of the .cu files that include ``header``, directly or not."""
    including = {header}
    files = {path.name: path.read_text() for path in KERNELS.glob("*") if path.is_file()}
    while True:
        more = {
            name
            for name, text in files.items()
            if any(f'#include "{wanted}"' in text for wanted in including)
        }
        if more <= including:
            return [name[:-3] for name in including if name.endswith(".cu")]
        including |= more


def caught_by(fault: Fault, folder: Path, objects: dict[str, Path]) -> str:
    """What saw the fault first; "" for nothing.

    Args:
        folder: scratch.
        objects: of the sources as they are, by check: those to be asked.
    """
    csrc = folder / "csrc"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, csrc)
    path = csrc / "cuda" / fault.file
    lines = path.read_text().splitlines()
    assert lines[fault.line - 1] == fault.before
    lines[fault.line - 1] = fault.after
    path.write_text("\n".join(lines) + "\n")
    changed = users(fault.file)
    for check, as_it_is in objects.items():
        target = folder / f"build{CHECKS[check]}"
        if not target.exists():
            shutil.copytree(as_it_is, target)
            try:
                build(target, csrc=csrc, sanitizer=CHECKS[check], only=changed)
            except BuildError:
                return "compiler"
        if seen := ask(check, target / LIBRARY, changed):
            return seen
    return ""


def ask(check: str, library: Path, only: Sequence[str] = ()) -> str:
    """What the check sees, by the cases that run the .cu files ``only``; none: by all of them.

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
    variables = {**os.environ, **environment(sanitizer), "METACURV_EMULATED_LIBRARY": str(library)}
    try:
        done = subprocess.run(
            command,
            env=variables,
            capture_output=True,
            text=True,
            timeout=LONGEST[sanitizer],
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"{check}: without an end"
    return _verdict(check, done)


def _verdict(check: str, done: subprocess.CompletedProcess[str]) -> str:
    if done.returncode == 0:
        return ""
    if done.returncode < 0:
        return f"{check}: {signal.Signals(-done.returncode).name}"
    if "runtime error: " in done.stderr:
        return "bounds and alignment"
    for sanitizer in ("AddressSanitizer", "ThreadSanitizer"):
        if f"{sanitizer}: " in done.stderr:
            return sanitizer
    if check == "launches" and re.search(r"^\d+ failed", done.stdout, re.MULTILINE):
        return "launches"
    if check != "launches" and "not what the twin gives" in done.stdout:
        return "values"
    if check != "launches" and "could not be launched" in done.stdout:
        return "emulator"
    if check != "launches" and "Schedule(" in done.stdout:
        return "refusal"
    raise RuntimeError(f"{check} did not run:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", action="append", metavar="NAME", help="only faults in this file")
    parser.add_argument("--kind", help="only kinds that contain this text, such as sync")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th fault")
    parser.add_argument(
        "--checks",
        nargs="+",
        choices=CHECKS,
        default=list(CHECKS),
        help="only these",
    )
    parser.add_argument(
        "--invisible", action="store_true", help="plant a change that is no fault: it must survive"
    )
    parser.add_argument("--list", action="store_true", help="list them and plant nothing")
    parser.add_argument("--out", type=Path, default=Path("runs") / "mutants.md", metavar="FILE")
    arguments = parser.parse_args()
    chosen = [
        fault
        for fault in faults()
        if (not arguments.file or fault.file in arguments.file)
        and (not arguments.kind or arguments.kind in fault.kind)
        and not is_equivalent(fault)
    ][:: arguments.every]
    if arguments.invisible:
        chosen = [invisible()]
    if arguments.list:
        for fault in chosen:
            print(f"{fault.place:28} {fault.kind:24} {fault.before.strip()}")
        print(f"{len(chosen)} faults; {len(EQUIVALENT)} changes that are none are not among them")
        return 0
    survivors = 0
    rows = ["| place | fault | line | caught by |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as scratch:
        asked = [check for check in CHECKS if check in arguments.checks]
        objects = {check: Path(scratch) / f"as-it-is{CHECKS[check]}" for check in asked}
        for check, folder in objects.items():
            build(folder, sanitizer=CHECKS[check], only=())
            if seen := ask(check, folder / LIBRARY):
                print(f"error: {check} sees something in the sources as they are: {seen}")
                return 2
        for index, fault in enumerate(chosen, 1):
            check = caught_by(fault, Path(scratch) / "planted", objects)
            survivors += not check
            print(
                f"[{index}/{len(chosen)}] {fault.place:26} {fault.kind:24} {check or '*** SURVIVES ***'}",
                flush=True,
            )
            line = fault.before.strip().replace("|", "\\|")
            rows.append(f"| {fault.place} | {fault.kind} | `{line}` | {check or '**nothing**'} |")
            arguments.out.parent.mkdir(parents=True, exist_ok=True)
            arguments.out.write_text("\n".join(rows) + "\n")
    print(f"{len(chosen)} faults planted, {survivors} survived; {arguments.out}")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())

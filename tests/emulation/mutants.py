"""Plants faults in copies of the CUDA sources and says which check sees each: python tests/emulation/mutants.py

Faults: every barrier left out, every shuffle's mask cut, every comparison shifted by one or turned round, every "+ 1" and
"- 1" dropped, every sum overwritten instead of added to, every guarded return taken out. Checks, cheapest first: the
compiler; the emulator and the comparison with the twins under six schedules ("exercise.py"); the same under
AddressSanitizer and ThreadSanitizer. Prints a table as it goes and saves it; exits with 1 when a fault survives all of them.

Some changes are no faults: they are listed in EQUIVALENT, each with its reason, and are not planted.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.emulation.build import SOURCES, BuildError, build, environment, exercise_arguments  # noqa: E402

KERNELS = SOURCES / "cuda"
CHECKS = ("", "address", "thread")
NAMES = {"": "values", "address": "AddressSanitizer", "thread": "ThreadSanitizer"}
_SHIFTED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}

_SAME_AT_EQUALITY = "both branches give the same number where the two are equal"
# (file, beginning of the line, to its end where that is \n, kind) -> why the change is no fault
EQUIVALENT = {
    ("finish_sums.cuh", "if (end - begin > kLongRange)", "> as >="): "a range of that length is added twice, to the same sum",
    ("rademacher.cuh", "return;\n", "no return"): "an empty tile is walked over in vain",
    ("softmax_factor.cuh", "return;\n", "no return"): "words that are there are made again",
    ("softmax_factor.cuh", "const int first = start < 0", "< as <="): _SAME_AT_EQUALITY,
    ("softmax_factor.cuh", "static_cast<int>(end - origin", "< as <="): _SAME_AT_EQUALITY,
    ("softmax_factor.cuh", "for (; origin < end;", "< as <="): "one more turn, of a piece with no element of the row",
    ("softmax_factor.cuh", "for (int step = 0; step < kPieceWords", "< as <="): "no element of the piece is that far",
    ("step_line.cuh", "const int elements = left", "< as <="): _SAME_AT_EQUALITY,
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


def faults() -> Iterator[Fault]:
    """All that can be planted, file by file."""
    for path in sorted(KERNELS.glob("*.cuh")):
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
    if re.search(r"\b(if|for|while)\b|\?", code) and "constexpr" not in code:
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
    """The first check that sees the fault; "" for none.

    Args:
        folder: scratch.
        objects: of the sources as they are, by sanitizer: those to be asked.
    """
    csrc = folder / "csrc"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(SOURCES, csrc)
    path = csrc / "cuda" / fault.file
    lines = path.read_text().splitlines()
    assert lines[fault.line - 1] == fault.before
    lines[fault.line - 1] = fault.after
    path.write_text("\n".join(lines) + "\n")
    for sanitizer in objects:
        target = folder / f"build{sanitizer}"
        shutil.copytree(objects[sanitizer], target)
        try:
            library = build(target, csrc=csrc, sanitizer=sanitizer, only=users(fault.file))
        except BuildError:
            return "compiler"
        if exercise(library, sanitizer, users(fault.file)):
            return NAMES[sanitizer]
    return ""


def exercise(library: Path, sanitizer: str, only: Sequence[str] = ()) -> bool:
    """Whether something is seen, by the cases that run the .cu files ``only``; none: by any."""
    command = [sys.executable, str(HERE / "exercise.py"), str(library), "--first"]
    command += ["--only", *only] if only else []
    command += exercise_arguments(sanitizer)
    variables = {**os.environ, **environment(sanitizer)}
    try:
        done = subprocess.run(command, env=variables, capture_output=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        return True  # a loop without an end
    return done.returncode != 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", action="append", metavar="NAME", help="only faults in this .cuh")
    parser.add_argument("--kind", help="only kinds that contain this text, such as sync")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th fault")
    parser.add_argument(
        "--checks",
        nargs="+",
        choices=NAMES.values(),
        default=list(NAMES.values()),
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
        asked = [s for s in CHECKS if NAMES[s] in arguments.checks]
        objects = {s: Path(scratch) / f"as-it-is{s}" for s in asked}
        for sanitizer, folder in objects.items():
            library = build(folder, sanitizer=sanitizer)
            if exercise(library, sanitizer):
                print(f"error: {NAMES[sanitizer]} complains about the sources as they are")
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

"""The faults that mutants.py plants in copies of the CUDA sources, and the changes that are none."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.cuda.emulation.build import SOURCES

KERNELS = SOURCES / "cuda"
# The formulas that kernels share with the CPU.
FORMULAS = [SOURCES / f"{name}.h" for name in ("philox", "reciprocal_lr")]
_SHIFTED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}

_PRODUCT = re.compile(r"^\s*(?:const )?u?int64_t \w+ = (.*\*.*);$")
_PRODUCT_IN_BRACKETS = re.compile(r"(?<=[\w\]])\[(\w+ \* [^]]*)\]")
_INDEX = re.compile(r"(?<=[\w\]])\[([^][&]*[a-z][^][]*)\]")
# Before the size of an array that is declared.
_DECLARED = re.compile(r"\b\w+ (\w+|\(&\w+\))(\[\w+\])*$")

_SAME_AT_EQUALITY = "both branches give the same number where the two are equal"
_LARGEST = "refuses a grid of 2^31 - 1 blocks too: memory for one is out of reach here"
# (file, beginning of the line, to its end where that is \n, kind) -> why the change is no fault
EQUIVALENT = {
    ("launch_plan.h", "STD_TORCH_CHECK(tiles <=", "<= as <"): _LARGEST,
    ("launch_plan.h", "if (view.is_contiguous() || view.numel <=", "<= as <"): "cuts a tensor that would have fitted",
    ("rademacher.cu", "return;\n", "no return"): "there are no launches to make",
    ("rademacher.cuh", "return;\n", "no return"): "an empty tile is walked over in vain",
    ("reciprocal_lr.h", "const double kept", "<= as <"): _SAME_AT_EQUALITY,
    ("reciprocal_lr.h", "const double scale", "> as >="): _SAME_AT_EQUALITY,
    ("reciprocal_lr.h", "return scale > kMinScale", "> as >="): _SAME_AT_EQUALITY,
    ("tensor_table.cuh", "for (int d = tensor.first_dimension", "> as >="): "the last quotient is 0 then, and the sum the same",
    ("warp_tile.cuh", "__device__ __forceinline__ bool is_empty", ">= as >"): "an empty tile is walked over in vain",
    ("warp_tile.cuh", "const int first_step", "no - 1"): "a step's elements go one by one, not in packs: slower",
    ("warp_tile.cuh", "const uint64_t first", "> as >="): _SAME_AT_EQUALITY,
    ("warp_tile.cuh", "const uint64_t last", "> as >="): _SAME_AT_EQUALITY,
    ("warp_tile.cuh", "for (int row = first / kRow;", "< as <="): "one more row, of which no element is in the tile",
    ("warp_tile.cuh", "if (first_step < last_step)", "< as <="): "no packs, at an aligned place: the two parts meet there",
    ("warp_tile.cuh", "lane_words[step", "in 32 bits"): "below kWarpWords",
    ("warp_tile.cuh", "return {begin, static_cast<int>(first", "< as <="): _SAME_AT_EQUALITY,
    ("warp_tile.cuh", "static_cast<int>(last", "< as <="): _SAME_AT_EQUALITY,
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
        """For the eye."""
        return f"{self.file}:{self.line}"

    @property
    def code(self) -> str:
        """The line as it was, without its indentation."""
        return self.before.strip()


def sources() -> list[Path]:
    """Kernels, their launch code, and the formulas in them."""
    kernels = (path for path in KERNELS.iterdir() if path.suffix in (".cuh", ".h", ".cu"))
    return [*FORMULAS, *sorted(kernels)]


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
        (file, kind) == (fault.file, fault.kind) and f"{fault.code}\n".startswith(line)
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
    yield from _index_changes(code)
    for match in re.finditer(r"(?<![<>] )(?<![<>=!]= )\b([a-z]\w*(?:\.\w+)?) \? ", code):
        yield "branches exchanged", f"{code[: match.start()]}!{code[match.start() :]}"
    if re.fullmatch(r"\s*\+\+\w+;", code):
        yield "not counted", ""
    if code.strip() == "return;":
        yield "no return", code.replace("return;", "")


def _index_changes(code: str) -> Iterator[tuple[str, str]]:
    """Other places in memory."""
    for match in (*_PRODUCT.finditer(code), *_PRODUCT_IN_BRACKETS.finditer(code)):
        begin, end = match.span(1)
        yield "in 32 bits", f"{code[:begin]}static_cast<uint32_t>({match[1]}){code[end:]}"
    for match in _INDEX.finditer(code):
        if not _DECLARED.search(code[: match.start()]):
            end = match.end(1)
            yield f"[{match[1]} + 1]", f"{code[:end]} + 1{code[end:]}"


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
    files = {path.name: path.read_text() for path in sources()}
    while True:
        more = {
            name
            for name, text in files.items()
            if any(re.search(rf'#include "(\.\./)?{wanted}"', text) for wanted in including)
        }
        if more <= including:
            return [name[:-3] for name in including if name.endswith(".cu")]
        including |= more

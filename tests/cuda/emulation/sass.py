"""Reads the kernels' machine code: loops, widths of loads, instructions an element. Needs nvcc and nvdisasm, but no GPU.

    python tests/cuda/emulation/sass.py [--update]

Prints, and with --update writes into docs/cuda.md, a roofline on paper: what the memory traffic of an element takes, and what
the instructions take that one turn of the kernel's innermost loop has for it, on an A100 and an H100.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tests.cuda.emulation.cuda_page import write_section
from tests.cuda.emulation.nvcc import CudaUnavailableError, Nvcc, demangle

PACKAGE = "nvidia-cuda-nvdisasm"


_FUNCTION = re.compile(r"^\.text\.(\w+):$")
_LABEL = re.compile(r"^(\.L_\w+):$")
_INSTRUCTION = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+ +)?([A-Z][A-Z0-9_.]*)([^;]*);")


class NoDisassemblerError(RuntimeError):
    """There is no nvdisasm; the message says where to get it."""


def find_nvdisasm(nvcc: Nvcc) -> str:
    """Of PyPI's package, the toolkit or $PATH. Raises NoDisassemblerError."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    installed = [str(file.locate()) for file in files if file.name == "nvdisasm"]
    beside = shutil.which("nvdisasm", path=str(Path(nvcc.toolkit.nvcc).parent))
    for found in (*installed, beside, shutil.which("nvdisasm")):
        if found:
            return found
    raise NoDisassemblerError(f"there is no nvdisasm: pip install {PACKAGE}")


@dataclass(frozen=True)
class Loop:
    """The instructions of an innermost loop, names with their suffixes, in order."""

    instructions: tuple[str, ...]

    def count(self, pattern: str) -> int:
        """Instructions whose whole name matches."""
        return sum(bool(re.fullmatch(pattern, name)) for name in self.instructions)


@dataclass(frozen=True)
class Code:
    """One kernel on one architecture."""

    instructions: tuple[str, ...]
    loops: tuple[Loop, ...]


def read(text: str) -> dict[str, Code]:
    """What nvdisasm printed, by mangled name.

    Raises:
        ValueError: there is no instruction in it, so the format must have changed.
    """
    found = {name: _code(lines) for name, lines in _functions(text)}
    if not any(code.instructions for code in found.values()):
        raise ValueError(f"no instructions found in {text[:300]!r}")
    return found


def _functions(text: str) -> Iterator[tuple[str, list[str]]]:
    name, lines = "", list[str]()
    for line in map(str.strip, text.splitlines()):
        match = _FUNCTION.match(line)
        if match or line.startswith(".section"):
            if name:
                yield name, lines
            name, lines = (match[1] if match else ""), []
        elif name:
            lines.append(line)
    if name:
        yield name, lines


def _code(lines: list[str]) -> Code:
    instructions, labels, jumps = [], dict[str, int](), list[tuple[int, str]]()
    for line in lines:
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif found := _INSTRUCTION.search(line):
            if found[2].startswith("BRA"):
                target = re.search(r"(\.L_\w+)", found[3])
                if target:
                    jumps.append((len(instructions), target[1]))
            instructions.append(found[2])
    # A jump back closes a loop; what lies inside another is no innermost one's concern.
    spans = [(labels[to], at) for at, to in jumps if labels.get(to, at + 1) <= at]
    # "BRA to itself" pads the end of every function.
    spans = [(first, last) for first, last in spans if first < last]
    inner = [
        (a, b)
        for a, b in spans
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)
    ]
    return Code(tuple(instructions), tuple(Loop(tuple(instructions[a : b + 1])) for a, b in inner))


def disassemble(nvdisasm: str, cubin: Path) -> dict[str, Code]:
    """By readable name."""
    done = subprocess.run([nvdisasm, str(cubin)], capture_output=True, text=True, check=True)
    return {demangle(name): code for name, code in read(done.stdout).items()}


@dataclass(frozen=True)
class Gpu:
    """What bounds a loop: NVIDIA's data sheets; results a clock and multiprocessor from the CUDA C++ Programming Guide."""

    name: str
    arch: str
    bandwidth: float  # bytes a second
    processors: int
    clock: float  # Hz, from the peak of float32
    double: int  # float64 results a clock and multiprocessor
    issue: int = (
        128  # results of all instructions: four schedulers, a warp instruction a clock each
    )
    slow: int = 16  # conversions from and to 64 bits, reciprocals

    def seconds(self, loop: Loop, elements: int) -> float:
        """What the instructions of an element take, at the busiest of the three."""
        clocks = max(
            len(loop.instructions) / self.issue,
            loop.count(r"D(ADD|MUL|FMA|SETP)\b.*") / self.double,
            loop.count(r"F2F\.F64.*|F2F\.F32\.F64.*|MUFU.*") / self.slow,
        )
        return clocks / elements / self.processors / self.clock


GPUS = (
    Gpu("A100", "80", 1555e9, 108, 1.41e9, 32),  # SXM4, 40 GB
    Gpu("H100", "90", 3350e9, 132, 1.98e9, 64),  # SXM5
)
ARCHS = tuple(gpu.arch for gpu in GPUS)


@dataclass(frozen=True)
class Work:
    """A loop of a kernel, and what one turn of it does.

    Attributes:
        kernel: readable name.
        what: for the table.
        traffic: bytes of an element between the GPU's memory and the kernel, caches being of no help.
        access: pattern of instructions by which the loop is found.
        count: of those in the loop.
        elements: that one turn handles.
        place: among the loops with as many, in the order of the code.
    """

    kernel: str
    what: str
    traffic: int
    access: str
    count: int
    elements: int
    place: int = 0

    def find(self, code: Code) -> Loop:
        """Raises LookupError where the code has no such loop (any more)."""
        loops = [loop for loop in code.loops if loop.count(self.access) == self.count]
        if len(loops) <= self.place:
            raise LookupError(f"{self}: {len(loops)} loops with that many")
        return loops[self.place]


def _packed(kernel: str, access: str) -> Iterator[Work]:
    """A loop for each dtype, in the order that the code has them; it handles eight packs of 16 bytes."""
    for place, (dtype, size) in enumerate(
        (("float64", 8), ("float32", 4), ("bfloat16", 2), ("float16", 2))
    ):
        yield Work(kernel, dtype, size, access, 8, 8 * 16 // size, place)


WORK = (
    *_packed("rademacher_kernel", "LDS"),
    *_packed("signed_sum_kernel", r"LDG\.E\.128"),
)

Codes = dict[str, dict[str, Code]]  # architecture -> readable name


def disassembled(nvcc: Nvcc, folder: Path) -> Codes:
    """All kernels for the GPUs of the table; compiles into ``folder``.

    Raises:
        NoDisassemblerError: there is no nvdisasm.
    """
    nvdisasm = find_nvdisasm(nvcc)
    nvcc.cubins(folder, ARCHS)
    found: Codes = {arch: {} for arch in ARCHS}
    for arch in ARCHS:
        for cubin in sorted(folder.glob(f"*.{arch}.cubin")):
            found[arch].update(disassemble(nvdisasm, cubin))
    return found


def markdown(codes: Codes) -> str:
    """Picoseconds an element: memory / instructions. The larger is the bound."""
    lines = [
        f"| kernel | loop | bytes | instructions, {' / '.join(f'sm_{a}' for a in ARCHS)} | "
        + " | ".join(f"{gpu.name}: memory / instructions, ps" for gpu in GPUS)
        + " |",
        "|---|---|---|---|" + "---|" * len(GPUS),
    ]
    for work in WORK:
        loops = {arch: work.find(codes[arch][work.kernel]) for arch in ARCHS}
        counts = " / ".join(
            f"{len(loop.instructions) / work.elements:.1f}" for loop in loops.values()
        )
        times = [
            f"{1e12 * work.traffic / gpu.bandwidth:.2f} / {1e12 * gpu.seconds(loops[gpu.arch], work.elements):.2f}"
            for gpu in GPUS
        ]
        lines.append(
            f"| `{work.kernel}` | {work.what} | {work.traffic} | {counts} | {' | '.join(times)} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--update", action="store_true", help="write it into docs/cuda.md")
    arguments = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as folder:
            text = markdown(disassembled(Nvcc.find(), Path(folder)))
    except (CudaUnavailableError, NoDisassemblerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    if arguments.update:
        write_section("roofline", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())

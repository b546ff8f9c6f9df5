"""Reads the kernels' machine code: loops, widths of loads, instructions an element. Needs nvcc and nvdisasm, but no GPU.

    python tests/emulation/sass.py      # the table of docs/cuda.md

An innermost loop that touches global memory is a kernel's work; what one turn of it takes, over the elements that it
handles, gives the time that instructions cost, beside that of the memory traffic: a roofline on paper, for an A100 and an H100.
"""

from __future__ import annotations

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.emulation.nvcc import Nvcc, demangle  # noqa: E402

PACKAGE = "nvidia-cuda-nvdisasm"
ARCHS = ("80", "90")  # of the A100 and the H100

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
        (a, b) for a, b in spans if not any((c, d) != (a, b) and a <= c and d <= b for c, d in spans)
    ]
    return Code(tuple(instructions), tuple(Loop(tuple(instructions[a : b + 1])) for a, b in inner))


def disassemble(nvdisasm: str, cubin: Path) -> dict[str, Code]:
    """By readable name."""
    done = subprocess.run([nvdisasm, str(cubin)], capture_output=True, text=True, check=True)
    return {demangle(name): code for name, code in read(done.stdout).items()}


def all_kernels(nvcc: Nvcc, folder: Path, archs: tuple[str, ...] = ARCHS) -> dict[str, dict[str, Code]]:
    """By architecture and readable name; compiles into ``folder``."""
    nvdisasm = find_nvdisasm(nvcc)
    nvcc.cubins(folder, archs)
    found: dict[str, dict[str, Code]] = {arch: {} for arch in archs}
    for arch in archs:
        for cubin in sorted(folder.glob(f"*.{arch}.cubin")):
            found[arch].update(disassemble(nvdisasm, cubin))
    return found


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        made = all_kernels(Nvcc.find(), Path(scratch))
    for arch, codes in made.items():
        for name, code in codes.items():
            print(arch, name, len(code.instructions))
            for loop in code.loops:
                print("    ", len(loop.instructions), dict(Counter(loop.instructions)))

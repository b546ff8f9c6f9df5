"""Compiles csrc/cuda/*.cu for sm_80 and sm_90 and prints registers and spills of each kernel.

Fails where a kernel spills registers to memory, or nvcc warns. Needs nvcc and torch, but no GPU.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))

from cuda_compile import CUDA_SOURCES, nvcc_command  # noqa: E402
from cuda_toolkit import find_toolkit  # noqa: E402
from native_build import TORCH_TARGET  # noqa: E402

ARCHS = ("80", "90")

REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """What ptxas says of one kernel: registers a thread, stack and spills in bytes."""

    name: str
    registers: int
    stack: int
    spills: int


def parse(output: str) -> list[Kernel]:
    """The kernels in what ``nvcc -Xptxas -v`` printed, in its order.

    Raises:
        ValueError: a kernel is named but not described, so the format must have changed.
    """
    kernels = [
        Kernel(m["name"], int(m["registers"]), int(m["stack"]), int(m["stores"]) + int(m["loads"]))
        for m in REPORT.finditer(output)
    ]
    named = output.count("Compiling entry function")
    if len(kernels) != named or not named:
        raise ValueError(f"understood {len(kernels)} of {named} kernels in:\n{output}")
    return kernels


def demangle(name: str) -> str:
    """Readable name of a kernel, without its arguments and the namespaces it is hidden in."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    text = text.strip().replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\((?!anonymous).*", "", text).replace("metacurv::", "")


def compile_for(arch: str, source: Path, command: list[str]) -> list[Kernel]:
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [*command, f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v", str(source)],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.exit(f"{done.stdout}\nnvcc failed on {source.name} for sm_{arch}")
    return parse(done.stdout)


def main() -> int:
    from torch.utils.cpp_extension import include_paths

    toolkit = find_toolkit(os.environ)
    macros = {"TORCH_TARGET_VERSION": TORCH_TARGET}
    command = nvcc_command(toolkit, include_dirs=include_paths(), macros=macros, werror=True)
    spilling = 0
    print(f"nvcc {toolkit.version}: registers, stack bytes, spilled bytes, kernel")
    for source in sorted(CUDA_SOURCES.glob("*.cu")):
        for arch in ARCHS:
            kernels = compile_for(arch, source, command)
            print(f"{source.name}, sm_{arch}: {len(kernels)} kernels")
            for kernel in kernels:
                spilling += kernel.spills > 0
                name = demangle(kernel.name)
                print(f"{kernel.registers:6} {kernel.stack:5} {kernel.spills:5}  {name}")
    if spilling:
        print(f"{spilling} kernels spill", file=sys.stderr)
    return 1 if spilling else 0


if __name__ == "__main__":
    sys.exit(main())

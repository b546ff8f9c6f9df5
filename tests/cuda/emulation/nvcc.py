"""What nvcc makes of the kernels, architecture by architecture: resources, machine code, PTX. Needs nvcc, but no GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch.utils.cpp_extension import include_paths

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "build_backend"))

from cuda_archs import CHECKED_ARCHS  # noqa: E402
from cuda_compile import CUDA_SOURCES, nvcc_command  # noqa: E402
from cuda_toolkit import CudaToolkit, CudaUnavailableError, find_toolkit  # noqa: E402
from native_build import TORCH_TARGET  # noqa: E402

__all__ = ["CudaUnavailableError", "Kernel", "Nvcc", "demangle", "parse"]

_REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


class Kernel(NamedTuple):
    """What ptxas says of one kernel: registers a thread; stack, spills and shared memory in bytes."""

    name: str
    registers: int
    stack: int
    spills: int
    shared: int


def parse(output: str) -> list[Kernel]:
    """The kernels in what ``nvcc -Xptxas -v`` printed, in its order.

    Raises:
        ValueError: a kernel is named but not described, so the format must have changed.
    """
    kernels = []
    for m in _REPORT.finditer(output):
        shared = re.search(r"(\d+) bytes smem", m["rest"])
        kernels.append(
            Kernel(
                m["name"],
                int(m["registers"]),
                int(m["stack"]),
                int(m["stores"]) + int(m["loads"]),
                int(shared[1]) if shared else 0,
            )
        )
    named = output.count("Compiling entry function")
    if len(kernels) != named or not named:
        raise ValueError(f"understood {len(kernels)} of {named} kernels in:\n{output}")
    return kernels


def demangle(name: str) -> str:
    """Readable name of a kernel, without its arguments and the namespaces it is hidden in."""
    text = subprocess.run(["c++filt", name], capture_output=True, text=True, check=True).stdout
    text = text.strip().replace("(anonymous namespace)::", "").removeprefix("void ")
    return re.sub(r"\((?!anonymous).*", "", text).replace("metacurv::", "")


@dataclass(frozen=True)
class Nvcc:
    """The compiler as the package uses it, warnings being errors."""

    toolkit: CudaToolkit
    command: tuple[str, ...]

    @classmethod
    def find(cls) -> Nvcc:
        """Raises CudaUnavailableError where there is none."""
        toolkit = find_toolkit(os.environ)
        command = nvcc_command(
            toolkit,
            include_dirs=include_paths(),
            macros={"TORCH_TARGET_VERSION": TORCH_TARGET},
            werror=True,
        )
        return cls(toolkit, tuple(command))

    @property
    def archs(self) -> list[str]:
        """Those of the package's that this nvcc knows."""
        return [arch for arch in CHECKED_ARCHS if arch in self.toolkit.archs]

    def cubins(self, folder: Path, archs: Iterable[str]) -> dict[str, dict[str, Kernel]]:
        """Writes ``folder``/SOURCE.ARCH.cubin and returns the kernels by architecture and readable name."""
        jobs = [(arch, source) for arch in archs for source in sorted(CUDA_SOURCES.glob("*.cu"))]

        def compiled(job: tuple[str, Path]) -> list[Kernel]:
            arch, source = job
            target = folder / f"{source.stem}.{arch}.cubin"
            flags = (f"-arch=sm_{arch}", "-cubin", "-Xptxas=-v", "-o", str(target))
            return parse(self._run(*flags, str(source)))

        found: dict[str, dict[str, Kernel]] = {}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for (arch, _), kernels in zip(jobs, pool.map(compiled, jobs), strict=True):
                named = found.setdefault(arch, {})
                named.update({demangle(kernel.name): kernel for kernel in kernels})
        return found

    def ptx(self, source: Path, arch: str, folder: Path) -> str:
        """The PTX that drivers translate for GPUs newer than all of ``archs``."""
        target = folder / f"{source.stem}.ptx"
        self._run(f"-arch=compute_{arch}", "-ptx", "-o", str(target), str(source))
        return target.read_text()

    def _run(self, *arguments: str) -> str:
        done = subprocess.run(
            [*self.command, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if done.returncode:
            raise RuntimeError(f"nvcc {' '.join(arguments)}:\n{done.stdout}")
        return done.stdout

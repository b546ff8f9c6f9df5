"""Compiles .cu files to objects.

torch's own CUDAExtension is of no use here: it refuses a CPU-only torch and demands that nvcc and
torch agree on the CUDA version. Our kernels see only torch's stable headers and link cudart
statically, so neither matters, and no GPU is needed to build.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from build_settings import BuildSettings
from cuda_archs import capabilities, choose_archs, gencode_flags, visible_archs
from cuda_toolkit import CudaToolkit, CudaUnavailableError, find_toolkit
from ninja_build import ROOT, compilation, run_ninja

CUDA_SOURCES = ROOT / "csrc" / "cuda"

# libtorch.so is empty but for needing libtorch_cuda.so where torch has one: only through it does a
# weak aoti_torch_get_current_cuda_stream resolve, in a binary that CPU-only torch can load as well.
LINK_FLAGS = [
    *("-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"),
    "-Wl,--exclude-libs,libcudart_static.a",
    *("-ldl", "-lrt", "-lpthread"),
]


@dataclass(frozen=True)
class CudaParts:
    """What the CUDA half brings to the extension; nothing where there is none.

    Attributes:
        summary: what was built, for the line at the end of the build.
        note: how to get others, or why there is nothing, for the end of that line.
        link_inputs: objects and static libraries.
        link_flags: flags for the linker, to stand last.
        macros: macros for the C++ files, their values in C++ syntax.
    """

    summary: str = "only"
    note: str = ""
    link_inputs: tuple[Path, ...] = ()
    link_flags: tuple[str, ...] = ()
    macros: dict[str, str] = field(default_factory=dict)


def build_cuda(
    settings: BuildSettings, include_dirs: Sequence[str], macros: Mapping[str, str], folder: Path
) -> CudaParts:
    """Compiles csrc/cuda/*.cu into ``folder``.

    Raises:
        CudaUnavailableError: there is no CUDA toolkit.
        SettingError: it does not compile for an architecture that was asked for.
        RuntimeError, OSError: the kernels do not compile.
    """
    sources = sorted(CUDA_SOURCES.glob("*.cu"))
    if not sources:
        raise CudaUnavailableError(f"{CUDA_SOURCES} holds no .cu files")
    toolkit = find_toolkit(os.environ)
    archs = choose_archs(toolkit, settings.cuda_archs, visible_archs())
    command = nvcc_command(
        toolkit,
        include_dirs=include_dirs,
        macros={**macros, "METACURV_NVCC": f'"{toolkit.release}"'},  # another nvcc compiles anew
        werror=settings.werror,
        debug=settings.debug,
    )
    command += gencode_flags(archs)
    command += ["-Xptxas=-v"] if settings.ptxas_verbose else []
    steps = [compilation(command, source, folder) for source in sources]
    run_ninja(steps, folder)
    others = "; for other GPUs set METACURV_CUDA_ARCHS, see docs/develop/build.md"
    return CudaParts(
        summary=f"and CUDA kernels for {capabilities(archs)} (nvcc {toolkit.release})",
        note=others if settings.cuda_archs is None else "",
        link_inputs=(*(step.output for step in steps), toolkit.cudart),
        link_flags=tuple(LINK_FLAGS),
        macros={
            "METACURV_WITH_CUDA": "1",
            "METACURV_CUDA_ARCHS": f'"{";".join(archs)}"',
            "METACURV_CUDA_VERSION": f'"{toolkit.version}"',
        },
    )


def host_compiler_flags(environ: Mapping[str, str]) -> list[str]:
    """Makes nvcc use $CXX for host code, unless the user steers that with nvcc's own variable."""
    compiler = shlex.split(environ.get("CXX", ""))
    if compiler and Path(compiler[0]).name in ("ccache", "sccache"):
        compiler = compiler[1:]
    return ["-ccbin", compiler[0]] if compiler and not environ.get("NVCC_CCBIN") else []


def nvcc_command(
    toolkit: CudaToolkit,
    *,
    include_dirs: Sequence[str],
    macros: Mapping[str, str],
    werror: bool = False,
    debug: bool = False,
) -> list[str]:
    """The nvcc command line that every .cu file is compiled with, less architectures and files.

    ``--fmad=false`` goes with ``-ffp-contract=off`` on the CPU: a fused multiply-add rounds once
    where the reference rounds twice. The kernels wait for memory, so it costs nothing.
    """
    host = ["-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
    command = [toolkit.nvcc, "-std=c++17", "--fmad=false"]
    command += ["-O1", "-g", "-lineinfo"] if debug else ["-O3", "-DNDEBUG"]
    command += ["--Werror=all-warnings"] if werror else []
    command += [f"-Xcompiler={','.join([*host, '-Werror'] if werror else host)}"]
    command += [f"-D{name}={value}" for name, value in macros.items()]
    for folder in include_dirs:
        command += ["-isystem", folder]
    return [*command, *host_compiler_flags(os.environ)]

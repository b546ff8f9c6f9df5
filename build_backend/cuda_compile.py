"""Compiles .cu files to objects.

torch's own CUDAExtension is of no use here: it refuses a CPU-only torch and demands that nvcc and
torch agree on the CUDA version. Our kernels see only torch's stable headers and link cudart
statically, so neither matters, and no GPU is needed to build.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from build_settings import BuildSettings, SettingError
from cuda_toolkit import CudaToolkit, CudaUnavailableError, find_toolkit

CUDA_SOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda"

# Turing to Blackwell, as far as the nvcc at hand knows them; the newest also goes in as PTX, so
# that the driver can translate it for GPUs that do not exist yet.
DEFAULT_ARCHS = ("75", "80", "86", "89", "90", "100", "120")

# libtorch.so is empty but for needing libtorch_cuda.so where torch has one: only through it does a
# weak aoti_torch_get_current_cuda_stream resolve, in a binary that CPU-only torch can load as well.
LINK_FLAGS = [
    *("-Wl,--no-as-needed", "-ltorch", "-Wl,--as-needed"),
    "-Wl,--exclude-libs,libcudart_static.a",
    *("-ldl", "-lrt", "-lpthread"),
]


@dataclass(frozen=True)
class CudaParts:
    """What the CUDA half brings to the extension; empty where there is none.

    Attributes:
        link_inputs: objects and static libraries.
        link_flags: flags for the linker, to stand last.
        macros: macros for the C++ files, their values in C++ syntax.
    """

    link_inputs: tuple[str, ...] = ()
    link_flags: tuple[str, ...] = ()
    macros: dict[str, str] = field(default_factory=dict)


def build_cuda(
    settings: BuildSettings, include_dirs: Sequence[str], macros: Mapping[str, str], build_dir: Path
) -> CudaParts:
    """Compiles csrc/cuda/*.cu.

    Raises:
        CudaUnavailableError: there is no CUDA toolkit.
        SettingError: it does not compile for an architecture that was asked for.
        RuntimeError, OSError: the kernels do not compile.
    """
    sources = sorted(CUDA_SOURCES.glob("*.cu"))
    if not sources:
        raise CudaUnavailableError(f"{CUDA_SOURCES} holds no .cu files")
    toolkit = find_toolkit(os.environ)
    archs = choose_archs(toolkit, settings.cuda_archs)
    command = nvcc_command(
        toolkit,
        include_dirs=include_dirs,
        macros=macros,
        werror=settings.werror,
        debug=settings.debug,
    )
    command += gencode_flags(archs)
    command += ["-Xptxas=-v"] if settings.ptxas_verbose else []
    objects = compile_objects(command, sources, build_dir, os.environ.get("MAX_JOBS"))
    return CudaParts(
        link_inputs=(*objects, str(toolkit.cudart)),
        link_flags=tuple(LINK_FLAGS),
        macros={
            "METACURV_WITH_CUDA": "1",
            "METACURV_CUDA_ARCHS": f'"{";".join(archs)}"',
            "METACURV_CUDA_VERSION": f'"{toolkit.version}"',
        },
    )


def choose_archs(toolkit: CudaToolkit, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """The architectures to compile for: those ``wanted``, else the usual ones that nvcc knows.

    Raises:
        SettingError: nvcc does not know one of those wanted.
        CudaUnavailableError: nvcc knows none of the usual ones.
    """
    if wanted is None:
        known = [arch for arch in DEFAULT_ARCHS if arch in toolkit.archs]
        if not known:
            raise CudaUnavailableError(
                f"nvcc {toolkit.version} knows none of {', '.join(DEFAULT_ARCHS)}"
            )
        return (*known[:-1], f"{known[-1]}+PTX")
    for arch in wanted:
        # --list-gpu-code leaves out the variants sm_90a, sm_100f: judge those by their number.
        if re.sub(r"\D", "", arch) not in toolkit.archs:
            raise SettingError(
                f"METACURV_CUDA_ARCHS: nvcc {toolkit.version} does not compile for {arch!r}; "
                f"it knows {';'.join(toolkit.archs)}"
            )
    return wanted


def gencode_flags(archs: Sequence[str]) -> list[str]:
    """nvcc's flags for ``archs``: machine code of each, and PTX of those ending in "+PTX"."""
    flags = []
    for arch in dict.fromkeys(name.removesuffix("+PTX") for name in archs):
        codes = [f"sm_{arch}"] + ([f"compute_{arch}"] if f"{arch}+PTX" in archs else [])
        flags += [f"-gencode=arch=compute_{arch},code={code}" for code in codes]
    return flags


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


def compile_objects(
    command: Sequence[str], sources: Sequence[Path], build_dir: Path, jobs: str | None
) -> list[str]:
    """Compiles each of ``sources`` with ``command``, in parallel, and returns the objects.

    Raises:
        RuntimeError: a file does not compile; what nvcc says of it was printed.
        FileNotFoundError: there is no ninja.
    """
    build_dir.mkdir(parents=True, exist_ok=True)
    objects = [build_dir.resolve() / f"{source.name}.o" for source in sources]
    line = shlex.join(command).replace("$", "$$")
    rules = [
        "rule nvcc",
        f"  command = {line} -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
    ]
    rules += [
        f"build {_ninja_path(out)}: nvcc {_ninja_path(source.resolve())}"
        for source, out in zip(sources, objects, strict=True)
    ]
    (build_dir / "build.ninja").write_text("\n".join(rules) + "\n")
    limit = ["-j", jobs] if jobs and jobs.isdigit() else []
    # By its number: setuptools may have detached sys.stdout.
    if subprocess.run(["ninja", "-v", *limit], cwd=build_dir, stdout=1, check=False).returncode:
        raise RuntimeError("nvcc did not compile the kernels; its messages are above")
    return [str(out) for out in objects]


def _ninja_path(path: Path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))

"""Compiles the CUDA sources, launch code and all, for the host: a library of ops that run under the emulator.

library = build(folder)                    # of this checkout's csrc
library = build(folder, sanitizer="thread")  # instrumented; the process must preload its runtime
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from torch.utils.cpp_extension import include_paths, library_paths

HERE = Path(__file__).resolve().parent
SOURCES = HERE.parents[2] / "csrc"
COMPILER = os.environ.get("CXX", "g++")

# Every variant checks alignment and bounds of arrays, and stops at the first fault.
_ALWAYS = ("-fsanitize=alignment,bounds", "-fno-sanitize-recover=all")
_SANITIZERS = {
    "": ("-O2",),
    "thread": ("-O1", "-fsanitize=thread"),
    "address": ("-O1", "-fsanitize=address"),
    "undefined": ("-O1", "-fsanitize=undefined"),
    "delayed": ("-O1",),  # no sanitizer: see delayed_stores.h
}
LIBRARY = "libmetacurv_emulated.so"
RUNTIMES = {"thread": "libtsan.so", "address": "libasan.so"}


class BuildError(RuntimeError):
    """A source does not compile or link; the message is the compiler's."""


def compile_command(source: Path, target: Path, sanitizer: str) -> list[str]:
    """Of one object."""
    flags = [*_SANITIZERS[sanitizer], *_ALWAYS]
    if sanitizer == "thread":
        # The scheduler tells ThreadSanitizer about barriers itself.
        flags = [*flags, "-DEMULATE_UNDER_TSAN"]
        if source.suffix == ".cpp":
            flags.remove("-fsanitize=thread")
    if sanitizer == "delayed":
        flags = [*flags, "-DEMULATE_DELAYED_STORES"]
        if source.suffix == ".cu":
            flags.append("-fsanitize=thread")  # for its announcements of stores alone
    before = ("-include", "cuda_runtime.h") if source.suffix == ".cu" else ()  # as nvcc does
    return [
        COMPILER, "-std=c++17", "-x", "c++", "-g", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off",
        "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-DTORCH_TARGET_VERSION=0x020a000000000000",
        *flags, f"-I{HERE / 'include'}", *before, *(f"-isystem{path}" for path in include_paths()),
        "-c", str(source), "-o", str(target),
    ]  # fmt: skip


def build(
    folder: Path,
    *,
    csrc: Path = SOURCES,
    sanitizer: str = "",
    only: Sequence[str] | None = None,
    kernels: Sequence[Path] | None = None,
) -> Path:
    """Compiles ``csrc/cuda/*.cu`` and the emulator into a library under ``folder``, and returns its path.

    Args:
        folder: for objects and the library; objects that are there are taken as they are, unless ``only`` names them.
        csrc: the sources, this checkout's or a copy with a fault planted.
        sanitizer: "", "thread", "address", "undefined" or "delayed".
        only: stems of the .cu files to compile anew; None: all.
        kernels: these .cu files instead of those of ``csrc``.

    Raises:
        BuildError: a source does not compile or link.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources = [*(kernels or sorted((csrc / "cuda").glob("*.cu"))), HERE / "emulator.cpp"]
    if sanitizer == "delayed":
        sources.append(HERE / "delayed_stores.cpp")
    objects = [folder / f"{source.stem}.o" for source in sources]
    todo = [
        compile_command(source, target, sanitizer)
        for source, target in zip(sources, objects, strict=True)
        if only is None or source.stem in only or not target.exists()
    ]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_run, todo))
    library = folder / LIBRARY
    link = [
        COMPILER,
        "-shared",
        *map(str, objects),
        "-o",
        str(library),
        *_SANITIZERS[sanitizer],
        *_ALWAYS,
    ]
    _run([*link, *(f"-L{path}" for path in library_paths()), "-ltorch_cpu", "-lc10", "-ldl"])
    return library


def build_stand_in(folder: Path) -> Path:
    """Compiles stand_in.cpp, which must know torch as a part of it does, to a library in ``folder``."""
    torch_libraries = library_paths()
    library = folder / "libcuda_stand_in.so"
    _run([
        COMPILER, "-std=c++20", "-O1", "-fPIC", "-shared", *(f"-isystem{path}" for path in include_paths()),
        str(HERE / "stand_in.cpp"), "-o", str(library), *(f"-L{path}" for path in torch_libraries),
        "-ltorch", "-ltorch_cpu", "-lc10", *(f"-Wl,-rpath,{path}" for path in torch_libraries),
    ])  # fmt: skip
    return library


def run_on_stand_in(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs a script of this folder in a process that believes in a GPU; ``folder`` is for the library that makes it."""
    command = [sys.executable, str(HERE / script), str(build_stand_in(folder))]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def preloaded(sanitizer: str) -> str:
    """What LD_PRELOAD must name before a process may load an instrumented library; "" for nothing.

    The runtime comes first, and the C++ library with it: a runtime looks up the functions that it stands in for when the
    process starts, Python brings no C++ library, and AddressSanitizer would end the process at the first C++ exception.
    """
    if sanitizer not in RUNTIMES:
        return ""
    return ":".join(map(_compilers_own, (RUNTIMES[sanitizer], "libstdc++.so.6")))


def _compilers_own(library: str) -> str:
    """Its path."""
    found = subprocess.run(
        [COMPILER, f"-print-file-name={library}"], capture_output=True, text=True, check=True
    )
    return found.stdout.strip()


def exercise_arguments(sanitizer: str) -> list[str]:
    """For exercise.py: races need blocks on two threads of the host, and what memory is touched hardly hangs on the order."""
    if sanitizer == "thread":
        return ["--workers", "2"]
    return ["--workers", "1"] if sanitizer in ("address", "undefined") else []


def environment(sanitizer: str) -> dict[str, str]:
    """Variables for a process that loads an instrumented library."""
    return {
        "OMP_NUM_THREADS": "1",
        "LD_PRELOAD": preloaded(sanitizer),
        # Python's own leaks, and fibers, which have stacks of their own.
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "TSAN_OPTIONS": "report_signal_unsafe=0:halt_on_error=1:exitcode=66",
    }


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")

"""The build_ext command: C++ and CUDA kernels through ninja, and the pure-Python fallback."""

from __future__ import annotations

import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from setuptools.command.build_ext import build_ext

from build_settings import BuildSettings, SettingError
from build_tools import find_tools
from cuda_compile import CudaParts, build_cuda
from cuda_toolkit import CudaUnavailableError
from fallback import banner, check_compiler, remove_stale, warn_fallback
from ninja_build import ROOT, Step, compilation, run_ninja

# No -march: the instruction set is chosen at run time. No contraction: a fused multiply-add would
# round differently from the reference.
CXX_FLAGS = ["-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
RELEASE_FLAGS = ["-O3", "-g0"]
DEBUG_FLAGS = ["-O1", "-g", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"]

# The oldest torch whose stable ABI the binary asks for: 2.10.
TORCH_TARGET = "0x020a000000000000"


class NativeBuild(build_ext):
    """setuptools' command, but compiling with ninja and falling back to pure Python.

    Attributes:
        settings: what the person who builds asked for.
        summary: what was built, in one line; empty as long as nothing was.
    """

    settings = BuildSettings()
    summary = ""

    def finalize_options(self) -> None:
        super().finalize_options()
        # In the tree for an editable install too: in the temporary folder that setuptools chooses
        # for it, everything would be compiled each time.
        tag = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.build_temp = str(ROOT / "build" / f"temp.{tag}")

    def run(self) -> None:
        self.into_source_tree = bool(self.inplace)  # setuptools clears it while it builds
        super().run()

    def build_extensions(self) -> None:
        version = self.distribution.get_version()
        try:
            built = self.build_kernels(version)
        except SettingError:
            raise
        except Exception as error:
            if required := self.settings.required_by():
                raise RuntimeError(f"{required}, but the native build failed: {error}") from error
            warn_fallback(error)
            remove_stale(self.build_lib, self.into_source_tree)
            # Nothing was built: setuptools then copies and lists nothing, editable or not.
            self.extensions = []
            built = f"pure Python, no compiled kernels: {error}"
        type(self).summary = f"metacurv {version}: {' '.join(built.split())}"

    def build_kernels(self, version: str) -> str:
        """Builds the extension and says of what."""
        started = time.monotonic()
        (extension,) = self.extensions
        compiler = self.compiler.linker_exe_cxx  # $CXX, else the one that Python was built with
        check_compiler(compiler)
        folder = Path(self.build_temp)
        tools = find_tools(compiler, folder)
        macros = {
            "TORCH_TARGET_VERSION": TORCH_TARGET,
            "METACURV_VERSION": f'"{version}"',
            "METACURV_BUILT_WITH": tools.fingerprint,  # so that other tools compile anew
        }
        cuda = cuda_parts(self.settings, tools.include_dirs, macros, folder / "cuda")
        command = [
            *self.compiler.compiler_so_cxx,
            *cxx_flags(self.settings, tools.include_dirs, macros | cuda.macros),
        ]
        steps = [compilation(command, ROOT / source, folder) for source in extension.sources]
        linker = [*compiler, *self.compiler.linker_so_cxx[1:]]
        link = link_step(linker, [step.output for step in steps], cuda, tools.torch_lib, folder)
        run_ninja([*steps, link], folder)

        target = self.get_ext_fullpath(extension.name)
        self.mkpath(str(Path(target).parent))
        self.copy_file(str(link.output), target)
        seconds = time.monotonic() - started
        with_what = f"{tools.compiler}, torch {tools.torch}"
        return f"C++ kernels ({with_what}) {cuda.summary}, in {seconds:.0f} s{cuda.note}"


def cxx_flags(
    settings: BuildSettings, include_dirs: Sequence[str], macros: Mapping[str, str]
) -> list[str]:
    """The flags that every .cpp file is compiled with, besides those of Python itself."""
    return [
        *CXX_FLAGS,
        *(DEBUG_FLAGS if settings.debug else RELEASE_FLAGS),
        *(["-Werror"] if settings.werror else []),
        *(f"-D{name}={value}" for name, value in macros.items()),
        # System headers: their warnings are not ours to fix.
        *(flag for folder in include_dirs for flag in ("-isystem", folder)),
        f"-I{sysconfig.get_path('include')}",
    ]


def link_step(
    linker: Sequence[str], objects: Sequence[Path], cuda: CudaParts, torch_lib: str, folder: Path
) -> Step:
    """Makes ``folder``/_C.so of the C++ ``objects`` and what CUDA adds."""
    output = folder / "_C.so"
    inputs = [*objects, *cuda.link_inputs]
    # No torch_python: no torch type crosses pybind11.
    libraries = [f"-L{torch_lib}", "-lc10", "-ltorch_cpu", *cuda.link_flags]
    return Step([*linker, *map(str, inputs), "-o", str(output), *libraries], inputs, output)


def cuda_parts(
    settings: BuildSettings, include_dirs: Sequence[str], macros: Mapping[str, str], folder: Path
) -> CudaParts:
    """The CUDA half; without METACURV_CUDA=1 the build goes on where it cannot be had."""
    if settings.cuda == "0":
        return CudaParts(note=": METACURV_CUDA=0")
    try:
        return build_cuda(settings, include_dirs, macros, folder)
    except CudaUnavailableError as error:
        if settings.cuda == "1":
            raise
        return CudaParts(note=f": {error}")
    except (RuntimeError, OSError) as error:
        if settings.cuda == "1":
            raise
        banner(
            "WARNING: metacurv's CUDA kernels did not compile; building for the CPU only.",
            f"Reason: {error}",
            "METACURV_CUDA=1 makes this an error, METACURV_CUDA=0 does not try.",
        )
        return CudaParts(note=": the CUDA kernels did not compile, see above")

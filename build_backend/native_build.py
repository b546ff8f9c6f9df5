"""The build_ext command: torch's BuildExtension, our CUDA step, and the pure-Python fallback."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from setuptools import Extension
from setuptools.command.build_ext import build_ext

from build_settings import BuildSettings, SettingError
from cuda_compile import CudaParts, build_cuda
from cuda_toolkit import CudaUnavailableError
from fallback import banner, check_compiler, remove_stale, warn_fallback

# No -march: the instruction set is chosen at run time. No contraction: a fused multiply-add would
# round differently from the reference.
CXX_FLAGS = ["-std=c++17", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
RELEASE_FLAGS = ["-O3", "-g0"]
DEBUG_FLAGS = ["-O1", "-g", "-UNDEBUG", "-D_GLIBCXX_ASSERTIONS"]

# The oldest torch whose stable ABI the binary asks for: 2.10.
TORCH_TARGET = "0x020a000000000000"


def command_class(settings: BuildSettings, argv: list[str]) -> type[build_ext]:
    """The class for ``cmdclass["build_ext"]``.

    Importing torch takes seconds, and asking for metadata or an sdist builds nothing.
    """
    if {"egg_info", "dist_info", "sdist"} & set(argv):
        return build_ext
    return optional_build(_torch_build_extension(), settings)


def _torch_build_extension() -> type[build_ext]:
    """torch's BuildExtension, or setuptools' own command where there is no torch to import."""
    try:
        from torch.utils.cpp_extension import BuildExtension
    except (ImportError, OSError):  # OSError: a libtorch that does not load
        return build_ext  # configure() imports torch again, and the build fails on that
    return BuildExtension


def optional_build(base: type[build_ext], settings: BuildSettings) -> type[build_ext]:
    """``base`` with our flags and CUDA objects, falling back to pure Python where it fails."""

    class NativeBuild(base):
        def run(self) -> None:
            self.into_source_tree = bool(self.inplace)  # setuptools clears it while it builds
            super().run()

        def build_extensions(self) -> None:
            try:
                check_compiler()
                for extension in self.extensions:
                    configure(extension, settings, self.distribution.get_version(), self.build_temp)
                super().build_extensions()
            except SettingError:
                raise
            except Exception as error:
                if required := settings.required_by():
                    raise RuntimeError(
                        f"{required}, but the native build failed: {error}"
                    ) from error
                warn_fallback(error)
                remove_stale(self.build_lib, self.into_source_tree)
                # Nothing was built: setuptools then copies and lists nothing, editable or not.
                self.extensions = []

    return NativeBuild


def configure(extension: Extension, settings: BuildSettings, version: str, build_temp: str) -> None:
    """Fills in flags, headers and libraries, and compiles the CUDA kernels into extra objects."""
    import pybind11
    import torch
    from torch.utils.cpp_extension import include_paths, library_paths

    # System headers: their warnings are not ours to fix. pybind11 stands first, as torch ships one
    # of its own that refuses to be included beside the stable ABI.
    include_dirs = [pybind11.get_include(), *include_paths()]
    macros = {
        "TORCH_TARGET_VERSION": TORCH_TARGET,
        "METACURV_VERSION": f'"{version}"',
        # Also makes ninja compile anew after torch was upgraded in place.
        "METACURV_BUILD_TORCH": f'"{torch.__version__}"',
    }
    cuda = cuda_parts(settings, include_dirs, macros, Path(build_temp, "cuda"))

    extension.libraries = ["c10", "torch_cpu"]  # no torch_python: no torch type crosses pybind11
    extension.library_dirs = library_paths()
    extension.extra_objects = list(cuda.link_inputs)
    extension.extra_link_args = list(cuda.link_flags)
    extension.extra_compile_args = [
        *CXX_FLAGS,
        *(DEBUG_FLAGS if settings.debug else RELEASE_FLAGS),
        *(["-Werror"] if settings.werror else []),
        *(f"-D{name}={value}" for name, value in (macros | cuda.macros).items()),
        *(flag for folder in include_dirs for flag in ("-isystem", folder)),
    ]


def cuda_parts(
    settings: BuildSettings, include_dirs: list[str], macros: Mapping[str, str], build_dir: Path
) -> CudaParts:
    """The CUDA half; without METACURV_CUDA=1 the build goes on where it cannot be had."""
    if settings.cuda == "0":
        return CudaParts()
    try:
        return build_cuda(settings, include_dirs, macros, build_dir)
    except CudaUnavailableError as error:
        if settings.cuda == "1":
            raise
        print(f"metacurv: building for the CPU only: {error}", flush=True)
    except (RuntimeError, OSError) as error:
        if settings.cuda == "1":
            raise
        banner(
            "WARNING: metacurv's CUDA kernels did not compile; building for the CPU only.",
            f"Reason: {error}",
            "METACURV_CUDA=1 makes this an error, METACURV_CUDA=0 does not try.",
        )
    return CudaParts()

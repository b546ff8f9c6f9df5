"""What was installed: build information, and the shared libraries that the binary asks for."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError, version

import pytest

import metacurv

native = pytest.mark.skipif(not metacurv.native_available(), reason="pure-Python install")


def test_version_stands_in_one_place() -> None:
    assert metacurv.build_info()["version"] == metacurv.__version__
    try:
        installed = version("metacurv")
    except PackageNotFoundError:
        pytest.skip("metacurv is imported from the source tree, but not installed")
    assert metacurv.__version__ == installed


def test_build_info_says_whether_it_is_native() -> None:
    assert metacurv.build_info()["native"] is metacurv.native_available()


@native
def test_binary_says_how_it_was_built() -> None:
    info = metacurv.build_info()
    assert info["built_from"] == metacurv.__version__  # not left over from another version
    assert info["compiler"].startswith(("gcc ", "clang "))
    assert info["cpp_standard"] >= 201703
    assert info["torch_target"] == "2.10"
    assert info["cuda_compiled"] is metacurv.cuda_compiled()
    assert bool(info["cuda_version"]) is bool(info["cuda_archs"]) is metacurv.cuda_compiled()


@native
def test_binary_asks_for_stable_libraries_only() -> None:
    """No libtorch_python and no libcudart: one binary serves every torch, with CUDA or without."""
    from metacurv import _C

    dynamic = subprocess.run(
        ["readelf", "--dynamic", _C.__file__], capture_output=True, text=True, check=True
    ).stdout
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "NEEDED" in line}
    system = {"libstdc++.so.6", "libgcc_s.so.1", "libc.so.6", "libm.so.6", "ld-linux-x86-64.so.2"}
    # libtorch.so brings libtorch_cuda.so where torch has one, for the current stream.
    torch = {"libc10.so", "libtorch_cpu.so"} | (
        {"libtorch.so"} if metacurv.cuda_compiled() else set()
    )
    assert torch <= needed
    assert needed - torch <= system


@native
def test_binary_exports_nothing_of_the_static_cuda_runtime() -> None:
    """Else another library's calls into the CUDA runtime could land in ours."""
    from metacurv import _C

    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", _C.__file__],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "PyInit__C" in symbols
    assert " cuda" not in symbols

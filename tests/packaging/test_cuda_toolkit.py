"""Finding nvcc behind wrappers, and incomplete toolkits."""

from __future__ import annotations

from pathlib import Path

import pytest

from cuda_compile import host_compiler_flags
from cuda_toolkit import (
    CudaUnavailableError,
    find_nvcc,
    find_toolkit,
    inspect_toolkit,
    toolkit_root,
)

NVCC = """#!/bin/sh
case "$1" in
  --version) echo 'Cuda compilation tools, release 12.8, V12.8.93' ;;
  --dryrun) echo '#$ _HERE_={root}/bin' >&2; echo '#$ TOP={root}/bin/..' >&2 ;;
  --list-gpu-code) printf 'sm_75\\nsm_80\\nsm_90\\nsm_120\\n' ;;
esac
"""


def toolkit_at(root: Path, *, lib: str = "lib64") -> Path:
    """A toolkit of files that say what nvcc would say; returns its nvcc."""
    for name in (f"{lib}/libcudart_static.a", "include/cuda_runtime.h", "bin/nvcc"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(NVCC.format(root=root))
    nvcc.chmod(0o755)
    return nvcc


@pytest.mark.parametrize("lib", ["lib64", "lib", "targets/x86_64-linux/lib"])
def test_wrapper_script_leads_to_the_real_root(tmp_path: Path, lib: str) -> None:
    nvcc = toolkit_at(tmp_path / "cuda-12.8", lib=lib)
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {nvcc} "$@"\n')
    wrapper.chmod(0o755)

    toolkit = find_toolkit({"PATH": str(wrapper.parent)})

    assert toolkit.nvcc == str(wrapper)
    assert toolkit.version == "12.8"
    assert toolkit.release == "12.8.93"
    assert toolkit.include == tmp_path / "cuda-12.8" / "include"
    assert toolkit.cudart == tmp_path / "cuda-12.8" / lib / "libcudart_static.a"
    assert toolkit.archs == ("75", "80", "90", "120")


def test_cuda_home_goes_before_path(tmp_path: Path) -> None:
    named = toolkit_at(tmp_path / "named")
    on_path = toolkit_at(tmp_path / "on_path")
    environ = {"PATH": str(on_path.parent)}
    assert find_nvcc(environ) == str(on_path)
    assert find_nvcc({**environ, "CUDA_HOME": str(tmp_path / "named")}) == str(named)


def test_cuda_home_without_nvcc_is_not_passed_over(tmp_path: Path) -> None:
    on_path = toolkit_at(tmp_path)
    with pytest.raises(CudaUnavailableError, match=r"no nvcc in \$CUDA_HOME/bin"):
        find_toolkit({"PATH": str(on_path.parent), "CUDA_HOME": str(tmp_path / "missing")})


@pytest.mark.parametrize("missing", ["lib64/libcudart_static.a", "include/cuda_runtime.h"])
def test_incomplete_toolkit_names_what_is_missing(
    tmp_path: Path, missing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    nvcc = toolkit_at(tmp_path)
    (tmp_path / missing).unlink()
    monkeypatch.setattr(Path, "is_file", lambda self: tmp_path in self.parents and self.exists())
    with pytest.raises(CudaUnavailableError, match=Path(missing).name):
        inspect_toolkit(str(nvcc))


def test_nvcc_that_does_not_run(tmp_path: Path) -> None:
    with pytest.raises(CudaUnavailableError, match="does not run"):
        inspect_toolkit(str(tmp_path / "nvcc"))


def test_nvcc_that_is_something_else() -> None:
    with pytest.raises(CudaUnavailableError, match="names no release"):
        inspect_toolkit("true")


def test_dryrun_without_top_is_quoted() -> None:
    with pytest.raises(CudaUnavailableError, match="nvcc fatal"):
        toolkit_root("nvcc fatal : nonsense")


@pytest.mark.parametrize(
    ("environ", "flags"),
    [
        ({}, []),
        ({"CXX": "clang++"}, ["-ccbin", "clang++"]),
        ({"CXX": "ccache g++-12 -m64"}, ["-ccbin", "g++-12"]),
        ({"CXX": "clang++", "NVCC_CCBIN": "g++"}, []),
    ],
)
def test_nvcc_uses_the_compiler_of_cxx(environ: dict[str, str], flags: list[str]) -> None:
    assert host_compiler_flags(environ) == flags

"""A build that fails ends as pure Python with one warning, or as an error where that was asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
from setuptools import Distribution, Extension

import fallback
from build_settings import BuildSettings, SettingError
from native_build import NativeBuild

ROOT = Path(__file__).resolve().parents[2]
BINARY = f"_C{EXTENSION_SUFFIXES[0]}"


def build_command(settings: BuildSettings, error: Exception, build_lib: Path) -> NativeBuild:
    """A finalized build_ext whose compilation fails with ``error``."""

    class Failing(NativeBuild):
        def build_kernels(self, version: str) -> str:
            raise error

    extension = Extension("metacurv._C", ["csrc/ops.cpp"])
    distribution = Distribution(
        {"name": "metacurv", "version": "0.1.0", "ext_modules": [extension]}
    )
    Failing.settings = settings
    command = Failing(distribution)
    command.build_lib = str(build_lib)
    command.ensure_finalized()
    return command


def test_failed_build_warns_once_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    stale = tmp_path / "metacurv" / BINARY
    stale.parent.mkdir()
    stale.touch()
    command = build_command(BuildSettings(), RuntimeError("no such compiler"), tmp_path)
    assert command.get_outputs()

    command.run()

    assert command.summary == "metacurv 0.1.0: pure Python, no compiled kernels: no such compiler"
    assert command.get_outputs() == []
    assert command.get_output_mapping() == {}
    assert not stale.exists()
    log = capfd.readouterr().err
    assert log.count("WARNING: metacurv is installed WITHOUT its compiled kernels") == 1
    assert "Reason: RuntimeError: no such compiler" in log
    assert "METACURV_REQUIRE_NATIVE=1" in log


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        (BuildSettings(require_native=True), "METACURV_REQUIRE_NATIVE=1"),
        (BuildSettings(cuda="1"), "METACURV_CUDA=1"),
    ],
)
def test_failed_build_is_an_error_where_kernels_are_required(
    settings: BuildSettings, named: str, tmp_path: Path
) -> None:
    command = build_command(settings, RuntimeError("no such compiler"), tmp_path)
    with pytest.raises(RuntimeError, match=f"{named}, but .* failed: no such compiler"):
        command.run()


def test_bad_setting_never_ends_as_the_fallback(tmp_path: Path) -> None:
    command = build_command(BuildSettings(), SettingError("METACURV_CUDA_ARCHS ..."), tmp_path)
    with pytest.raises(SettingError, match="METACURV_CUDA_ARCHS"):
        command.run()


@pytest.mark.parametrize("into_source_tree", [False, True])
def test_only_editable_builds_touch_the_source_tree(
    into_source_tree: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallback, "ROOT", tmp_path / "source")
    stale = tmp_path / "source" / "metacurv" / BINARY
    foreign = stale.with_name("_C.cpython-99-x86_64-linux-gnu.so")  # some other Python's
    stale.parent.mkdir(parents=True)
    stale.touch()
    foreign.touch()

    fallback.remove_stale(str(tmp_path / "build"), into_source_tree)

    assert stale.exists() is not into_source_tree
    assert foreign.exists()


@pytest.mark.parametrize(
    ("cxx", "reason"),
    [(["/bin/false"], "does not compile"), (["/no/such/g++", "-m64"], "does not run")],
)
def test_compiler_that_does_not_work(cxx: list[str], reason: str) -> None:
    with pytest.raises(RuntimeError, match=reason):
        fallback.check_compiler(cxx)


def test_in_place_build_without_compiler_removes_the_old_binary(tmp_path: Path) -> None:
    """The whole of setup.py."""
    for name in ("build_backend", "csrc"):
        shutil.copytree(ROOT / name, tmp_path / name)
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "README.md").touch()
    package = tmp_path / "metacurv"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "metacurv" / "_version.py", package)
    stale = package / BINARY
    stale.touch()
    environ = {name: value for name, value in os.environ.items() if "METACURV" not in name}
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**environ, "CXX": "/bin/false"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout
    assert done.stdout.count("WARNING") == 1
    assert "WARNING: metacurv is installed WITHOUT its compiled kernels" in done.stdout
    assert not stale.exists()
    assert ": pure Python, no compiled kernels: " in done.stdout.splitlines()[-1]

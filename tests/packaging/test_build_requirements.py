"""The in-tree backend asks for torch only where the target environment has no usable one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import metacurv_build


def site_with(folder: Path, **versions: str) -> str:
    """A site-packages folder in which the named distributions seem to be installed."""
    for name, version in versions.items():
        info = folder / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    return str(folder)


@pytest.mark.parametrize("version", ["2.10.0", "2.13.0+cpu", "2.14.1", "3.0.0a0"])
def test_uses_the_target_environments_torch(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_dir = site_with(tmp_path / "site", torch=version, numpy="2.0")
    monkeypatch.setattr(metacurv_build, "target_site_dirs", lambda: [site_dir])
    monkeypatch.setattr(sys, "path", ["/isolated"])

    assert metacurv_build.get_requires_for_build_wheel() == []
    assert metacurv_build.get_requires_for_build_editable() == []
    metacurv_build.expose_target_torch()
    assert sys.path == ["/isolated", site_dir]  # behind: the build's own setuptools wins


@pytest.mark.parametrize("versions", [{}, {"torch": "2.9.1"}, {"torchvision": "2.11.0"}])
def test_requires_torch_where_there_is_no_usable_one(
    versions: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site_dir = site_with(tmp_path / "site", **versions)
    monkeypatch.setattr(metacurv_build, "target_site_dirs", lambda: [site_dir])
    monkeypatch.setattr(sys, "path", ["/isolated"])

    assert metacurv_build.get_requires_for_build_wheel() == ["torch>=2.10"]
    assert metacurv_build.get_requires_for_build_editable() == ["torch>=2.10"]
    metacurv_build.expose_target_torch()
    assert sys.path == ["/isolated"]


def test_finds_the_torch_that_runs_these_tests() -> None:
    assert metacurv_build.has_usable_torch(metacurv_build.target_site_dirs())


def test_sdist_requires_no_torch() -> None:
    assert metacurv_build.get_requires_for_build_sdist() == []

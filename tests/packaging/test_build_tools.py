"""Names of the tools that a build uses."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from build_tools import find_tools, short_name


@pytest.mark.parametrize(
    ("compiler", "first_line", "name"),
    [
        (["g++"], "g++ (Debian 12.2.0-14+deb12u1) 12.2.0", "g++ 12.2.0"),
        (["/usr/bin/clang++"], "Debian clang version 14.0.6", "clang++ 14.0.6"),
        (["ccache", "g++-12", "-m64"], "g++-12 (GCC) 12.3.0", "g++-12 12.3.0"),
        (["c++"], "a compiler without numbers", "c++"),
    ],
)
def test_short_name(compiler: list[str], first_line: str, name: str) -> None:
    assert short_name(compiler, first_line) == name


def test_no_torch_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "pybind11.py").touch()
    with pytest.raises(RuntimeError, match="there is no torch to compile against"):
        find_tools(["g++"], tmp_path)

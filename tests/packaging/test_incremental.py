"""A second build of an unchanged tree compiles and links nothing; whatever changes is built anew.

Whole builds as ``pip install -e .`` runs them, but of two small sources, against a torch and a
pybind11 that are empty but for what the build looks at. Each build finds those two in a new folder
that is gone afterwards, as an isolated one does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from cuda_toolkit import CudaUnavailableError, find_toolkit

ROOT = Path(__file__).resolve().parents[2]
BUILD = (
    "import sys; sys.path.insert(0, 'build_backend'); import metacurv_build; "
    "metacurv_build.build_editable(sys.argv[1])"
)
OPS_AND_LINK = {"ops.cpp.o", "_C.so"}
ALL_CPP = {"ops.cpp.o", "other.cpp.o", "_C.so"}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not shutil.which("ninja"), reason="no ninja on PATH"),
]


@dataclass
class Tree:
    """A small project in ``folder``, with what builds it."""

    folder: Path
    times: dict[Path, int] = field(default_factory=dict)

    def write(self, name: str, text: str) -> None:
        path = self.folder / "csrc" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def build(
        self, environ: Mapping[str, str] = {}, *, torch: str = "2.13.0", pybind11: str = "3.0.0"
    ) -> set[str]:
        """Builds and returns the names of the files that the compilers and the linker wrote."""
        kept = {name: value for name, value in os.environ.items() if "METACURV" not in name}
        settings = {"METACURV_CUDA": "0", "METACURV_REQUIRE_NATIVE": "1"}
        with tempfile.TemporaryDirectory() as site:
            put_libraries(Path(site), torch, pybind11)
            done = subprocess.run(
                [sys.executable, "-c", BUILD, site],
                cwd=self.folder,
                env={**kept, **settings, "PYTHONPATH": site, **environ},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
            )
        assert done.returncode == 0, done.stdout
        made = [*self.folder.glob("build/**/*.o"), *self.folder.glob("build/**/_C.so")]
        before, self.times = self.times, {path: path.stat().st_mtime_ns for path in made}
        return {path.name for path, time in self.times.items() if before.get(path) != time}


def put_libraries(site: Path, torch_version: str, pybind11_version: str) -> None:
    """A site-packages folder with headers of its own and the libraries of the torch that runs this."""
    for name in ("torch", "pybind11"):
        (site / name / "include").mkdir(parents=True)
        (site / name / "include" / f"{name}.h").touch()
    (site / "torch" / "__init__.py").touch()
    (site / "torch" / "lib").symlink_to(Path(torch.__file__).parent / "lib")
    (site / "pybind11" / "__init__.py").write_text(
        f"__version__ = {pybind11_version!r}\n"
        "def get_include():\n    return __file__.replace('__init__.py', 'include')\n"
    )
    info = site / f"torch-{torch_version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {torch_version}\n"
    )


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    made = Tree(tmp_path / "tree")
    shutil.copytree(ROOT / "build_backend", made.folder / "build_backend")
    for name in ("setup.py", "pyproject.toml", "LICENSE"):
        shutil.copy(ROOT / name, made.folder)
    (made.folder / "README.md").touch()
    package = made.folder / "metacurv"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(ROOT / "metacurv" / "_version.py", package)
    made.write("number.h", "inline int number() { return 1; }\n")
    made.write(
        "ops.cpp",
        '#include <pybind11.h>\n#include <torch.h>\n#include "number.h"\nint f() { return number(); }\n',
    )
    made.write("cpu/other.cpp", "int g() { return 2; }\n")
    return made


def test_second_build_makes_nothing(tree: Tree) -> None:
    assert tree.build() == ALL_CPP
    assert tree.build() == set()
    assert list(tree.folder.glob("metacurv/_C*.so"))


def test_what_changes_is_built_anew(tree: Tree) -> None:
    tree.build()
    tree.write("number.h", "inline int number() { return 3; }\n")
    assert tree.build() == OPS_AND_LINK
    tree.write("ops.cpp", "int f() { return 3; }\n")
    assert tree.build() == OPS_AND_LINK
    tree.write("cpu/new.cpp", "int h() { return 3; }\n")
    assert tree.build() == {"new.cpp.o", "_C.so"}
    (tree.folder / "csrc" / "cpu" / "new.cpp").unlink()
    assert tree.build() == {"_C.so"}


def test_other_tools_and_settings_build_anew(tree: Tree) -> None:
    tree.build()
    assert tree.build(torch="2.14.0") == ALL_CPP
    assert tree.build(torch="2.14.0", pybind11="3.0.1") == ALL_CPP
    assert tree.build() == ALL_CPP
    for environ in ({"METACURV_DEBUG": "1"}, {"METACURV_WERROR": "1"}, {"CXX": "g++ -DOTHER"}):
        assert tree.build(environ) == ALL_CPP


def test_other_version_of_the_compiler_builds_anew(tree: Tree) -> None:
    """At the same path, as after an upgrade."""
    compiler = tree.folder / "c++"
    wrapper = '#!/bin/sh\nif [ "$1" = --version ]; then echo "g++ {}"; else exec g++ "$@"; fi\n'
    compiler.write_text(wrapper.format("12.1.0"))
    compiler.chmod(0o755)
    assert tree.build({"CXX": str(compiler)}) == ALL_CPP
    compiler.write_text(wrapper.format("12.2.0"))
    assert tree.build({"CXX": str(compiler)}) == ALL_CPP
    assert tree.build({"CXX": str(compiler)}) == set()


def test_other_flags_for_the_linker_link_anew(tree: Tree) -> None:
    tree.build()
    assert tree.build({"LDFLAGS": "-Wl,--build-id=none"}) == {"_C.so"}


def test_cuda_objects_are_kept_too(tree: Tree) -> None:
    try:
        find_toolkit(os.environ)
    except CudaUnavailableError as error:
        pytest.skip(str(error))
    tree.write(
        "cuda/kernel.cu", '#include <torch.h>\n#include "../number.h"\nint k() { return 4; }\n'
    )
    tree.write("cuda/plain.cu", "int p() { return 5; }\n")
    environ = {"METACURV_CUDA": "1", "METACURV_CUDA_ARCHS": "8.0"}

    assert tree.build(environ) == ALL_CPP | {"kernel.cu.o", "plain.cu.o"}
    assert tree.build(environ) == set()
    tree.write("number.h", "inline int number() { return 3; }\n")
    assert tree.build(environ) == OPS_AND_LINK | {"kernel.cu.o"}
    environ["METACURV_CUDA_ARCHS"] = "9.0"
    assert tree.build(environ) == ALL_CPP | {"kernel.cu.o", "plain.cu.o"}
    assert tree.build() == ALL_CPP  # without CUDA, as the C++ files are told

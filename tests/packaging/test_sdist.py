"""An sdist holds what a build from it needs, and nothing that was built."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WITHIN = ("build_backend", "csrc", "metacurv", "tests", "benchmarks")
ABOVE = ("setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md")


def test_sdist_holds_all_sources_and_no_binaries(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    unbuilt = shutil.ignore_patterns("__pycache__", "*.so", "build", "*.egg-info")
    for name in WITHIN:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=unbuilt)
    for name in ABOVE:
        shutil.copy(ROOT / name, tree)
    expected = {path.relative_to(tree).as_posix() for path in tree.rglob("*") if path.is_file()}
    (tree / "metacurv" / "_C.cpython-311-x86_64-linux-gnu.so").touch()
    (tree / "csrc" / "__pycache__").mkdir()
    (tree / "csrc" / "__pycache__" / "left_over.pyc").touch()

    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path / "dist")],
        cwd=tree,
        env={**os.environ, "CXX": "/bin/false"},  # an sdist compiles nothing
        check=True,
        capture_output=True,
    )

    (archive,) = (tmp_path / "dist").glob("metacurv-*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    assert expected <= held
    assert not {name for name in held if name.endswith((".so", ".pyc", ".o"))}

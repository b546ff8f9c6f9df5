"""The pages for developers say what is in the repository: files, imports between rooms, and a worked example that works."""

from __future__ import annotations

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "develop"
OURS = ("add-a-graph-rule", "add-a-rule", "add-an-op", "architecture", "build", "test")
# Made by a build, or torch's.
ELSEWHERE = {"build/", "torch/csrc/stable/"}
# Where a page may leave out the folders of a file.
FOLDERS = ("", "metacurv", "metacurv/estimators", "metacurv/optim/directional")


def page(name: str) -> str:
    return (PAGES / f"{name}.md").read_text()


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page(name), re.DOTALL)


@pytest.mark.parametrize("name", OURS)
def test_files_exist(name):
    """All but patterns."""
    named = re.findall(r"`([\w./-]+(?:\.(?:py|h|cpp|cu|cuh|md|json|toml|in)|/))`", page(name))
    ours = set(named) - ELSEWHERE
    missing = [f for f in ours if not any((ROOT / folder / f).exists() for folder in FOLDERS)]
    assert missing == []
    assert len(named) > 3


def test_rooms_and_what_they_import(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables name the rooms of the pictures, from the top, with what they import in the code."""
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_site"))
    architecture = importlib.import_module("architecture")
    rows = re.findall(
        r"^\| ([\w /]+) \| (`.*?) \| .* \|(.*)\|$", page("architecture"), re.MULTILINE
    )
    told = [
        (name, {room.strip() for room in may.split(",") if room.strip()}) for name, _, may in rows
    ]
    drawn = []
    for picture in (architecture.WHOLE, architecture.ESTIMATORS):
        graph = architecture.read(picture)
        drawn += [(name, graph[name]) for name in picture.rooms]
    assert told == drawn


def applied(diff: str, root: Path) -> None:
    """Applies a diff of one hunk, wherever in the file its lines are."""
    head, _, hunk = diff.partition("@@")
    (file,) = re.findall(r"^\+\+\+ b/(.*)$", head, re.MULTILINE)
    lines = hunk.split("\n")[1:-1]
    before = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "+")
    after = "".join(f"{line[1:]}\n" for line in lines if line[:1] != "-")
    text = (root / file).read_text()
    assert text.count(before) == 1, f"{file} has not, or not only once:\n{before}"
    (root / file).write_text(text.replace(before, after))


@pytest.mark.slow
def test_the_worked_example_of_a_graph_rule(tmp_path):
    """Applied to a copy of the package, it passes the tests that the page names; without the rule they fail."""
    name = "add-a-graph-rule"
    for part in ("metacurv", "tests", "pyproject.toml"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    diffs = blocks(name, "diff")
    (command,) = blocks(name, "sh")

    def run() -> int:
        return subprocess.run(
            [sys.executable, "-m", *shlex.split(command), "-x", "-q", "-p", "no:cacheprovider"],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(tmp_path)},
            check=False,
        ).returncode

    tests = [diff for diff in diffs if "+++ b/tests/" in diff]
    for diff in tests:
        applied(diff, tmp_path)
    assert run() == 1
    for diff in diffs:
        if diff not in tests:
            applied(diff, tmp_path)
    assert run() == 0

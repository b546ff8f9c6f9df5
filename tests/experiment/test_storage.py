"""Files are whole or not there, and damage is noticed."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
import torch

from metacurv.experiment import storage


def test_a_write_that_fails_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    storage.write_atomically(path, "old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        storage.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_leftovers_of_a_kill_are_removed_and_nothing_else(tmp_path: Path) -> None:
    storage.write_atomically(tmp_path / "kept", b"\x00")
    (tmp_path / ".mine.partial").touch()
    (tmp_path / f".kept.123{storage.TEMPORARY}").touch()
    storage.remove_leftovers(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"kept", ".mine.partial"}


def test_json_is_strict(tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    storage.write_json(path, {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": (True, None, "é")}})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    found = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert found == {"a": None, "b": [None, 1.5], "c": {"d": [True, None, "é"]}}
    assert storage.read_json(path) == found


@pytest.mark.parametrize("content", [None, "", "{", "[1]", "\xff"])
def test_json_that_is_missing_or_damaged_reads_as_none(tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "file.json"
    if content is not None:
        path.write_bytes(content.encode("latin-1"))
    assert storage.read_json(path) is None


def test_a_checkpoint_comes_back_exactly(tmp_path: Path) -> None:
    state = {"step": 3, "rows": [{"trace": 0.1}], "model": {"w": torch.randn(5)}}
    storage.write_checkpoint(tmp_path / "file", state)
    found = storage.read_checkpoint(tmp_path / "file")
    assert found is not None
    assert torch.equal(found["model"].pop("w"), state["model"].pop("w"))
    assert found == state


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "flipped"])
def test_a_damaged_checkpoint_reads_as_none(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "file"
    storage.write_checkpoint(path, {"w": torch.randn(50)})
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    path.write_bytes(content[: {"empty": 0, "cut": len(content) // 2}.get(damage)])
    if damage == "missing":
        path.unlink()
    assert storage.read_checkpoint(path) is None

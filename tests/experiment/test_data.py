"""mnist1d: made in process, as its authors make it, cached by its arguments, at no one's cost."""

from __future__ import annotations

import random
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import NoReturn

import numpy as np
import pytest
import torch
from mnist1d.data import get_dataset_args, make_dataset

from metacurv.experiment import data


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "not" / "there yet"
    monkeypatch.setenv("METACURV_CACHE", str(folder))
    return folder


def test_the_arguments_are_still_mnist1ds_defaults() -> None:
    theirs = get_dataset_args(as_dict=True)
    for ours_alone in ("num_samples", "seed", "url"):
        del theirs[ours_alone]
    assert theirs == data.ARGUMENTS


def test_the_data_are_mnist1ds(empty_cache: Path) -> None:
    with data.preserved_rng():
        arguments = {**get_dataset_args(as_dict=True), "num_samples": 100, "seed": 3}
        theirs = make_dataset(SimpleNamespace(**arguments))
    for ours in (data.load(100, 3), data.load(100, 3)):  # made, then read from the cache
        assert ours.x_train.shape == (80, data.N_FEATURES)
        assert (ours.x_train.dtype, ours.y_train.dtype) == (torch.float32, torch.int64)
        for name, array in (("x_train", theirs["x"]), ("x_test", theirs["x_test"])):
            np.testing.assert_array_equal(getattr(ours, name), array.astype(np.float32))
        for name, array in (("y_train", theirs["y"]), ("y_test", theirs["y_test"])):
            np.testing.assert_array_equal(getattr(ours, name), array)


def test_the_second_time_is_from_the_cache(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = data.load(100, 3)
    assert first.origin.startswith("generated, and cached in")
    monkeypatch.setattr(data, "_generate", _never)
    second = data.load(100, 3)
    assert second.origin.startswith("cached in")
    assert torch.equal(first.x_train, second.x_train)


def test_the_cache_tells_arguments_apart(empty_cache: Path) -> None:
    sets = [data.load(100, 3), data.load(100, 4), data.load(200, 3)]
    assert len(list(empty_cache.glob("*"))) == 3
    assert not torch.equal(sets[0].x_train, sets[1].x_train)
    assert len(sets[2].x_train) == 160


@pytest.mark.parametrize("damage", [b"", b"not an archive", "cut", "flipped"])
def test_a_damaged_cache_is_made_again(empty_cache: Path, damage: bytes | str) -> None:
    whole = data.load(100, 3)
    (path,) = empty_cache.glob("*.npz")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[: len(content) // 2]
    elif damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        content = bytearray(damage if isinstance(damage, bytes) else b"")
    path.write_bytes(content)
    again = data.load(100, 3)
    assert again.origin.startswith("generated, and cached in")
    assert torch.equal(whole.x_train, again.x_train)
    assert data.load(100, 3).origin.startswith("cached in")


def test_a_cache_that_cannot_be_written_does_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("METACURV_CACHE", str(tmp_path / "file"))
    loaded = data.load(100, 3)
    assert loaded.origin.startswith("generated, and not cached")
    assert len(loaded.x_test) == 20


def test_without_the_variable_it_is_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("METACURV_CACHE")
    monkeypatch.setattr("platformdirs.user_cache_dir", lambda name, appauthor: str(tmp_path / name))
    assert data.cache_path(data.ARGUMENTS).parent == tmp_path / "metacurv"


def test_global_random_state_is_left_alone(empty_cache: Path) -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)  # noqa: NPY002
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    data.load(100, 3)
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected  # noqa: NPY002


def test_nothing_is_downloaded(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket.socket, "connect", _never)
    monkeypatch.setattr(socket, "getaddrinfo", _never)
    data.load(100, 3)


def _never(*_: object) -> NoReturn:
    raise AssertionError("must not be called")

"""Fixtures for all tests."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import metacurv


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Gives each process whole files: what a file's tests share, such as dense Hessians, is then made once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = (
        False  # the files with the most tests first, which are not the longest
    )
    return LoadFileScheduling(config, log)


# Files that hold few tests and take minutes: begun last, one of them would keep one process busy while the others wait.
_LONGEST = ("cuda/emulation", "experiment", "distributed", "learning_rates")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begins with the folders whose files take longest."""

    def place(item: pytest.Item) -> int:
        folder = item.path.parent.as_posix()
        return next((i for i, name in enumerate(_LONGEST) if name in folder), len(_LONGEST))

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _hear_the_fallback_warning() -> None:
    """Without compiled kernels the first op warns, once in a process: take that away from the tests, where warnings fail.

    ``test_fallback.py`` checks the warning itself, in a process of its own.
    """
    if not metacurv.native_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            metacurv.ops.signed_sum([], seed=0, probe=0)


# For the processes that tests start, as ``_one_thread`` is for this one.
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Small tensors on busy cores: torch's threads wait for each other (100 x slower was seen)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _same_numbers_every_time() -> None:
    """Whatever ran before: a failure must come back when its test is run alone."""
    torch.manual_seed(0)


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """For tests that call ``torch.set_num_threads``."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)

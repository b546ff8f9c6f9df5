"""The drop-in contract (design/drop-in.md), line by line, as a user of plain torch would check it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest
import torch

from metacurv import _native, native_available


@pytest.fixture(scope="session", autouse=True)
def _fallback_warning_given() -> None:
    """Without the compiled kernels metacurv says so once; that warning belongs to no test here."""
    if not native_available():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _native.warn_fallback_once()


@pytest.fixture(autouse=True)
def _seeded_and_single_threaded() -> Iterator[None]:
    """Every test starts from one random state and leaves the process's as it was; tiny models gain nothing from threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield
    torch.set_num_threads(threads)

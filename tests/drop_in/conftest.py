"""The drop-in contract (design/drop-in.md), line by line, as a user of plain torch checks it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> Iterator[None]:
    """Every test starts from one random state and leaves the process's as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(7)
        yield

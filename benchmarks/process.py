"""How a benchmark that is no pytest benchmark sets up its process: as ``conftest`` does."""

from __future__ import annotations

import warnings

import torch


def settle() -> None:
    """One thread; an allocator that keeps what is freed (``conftest`` says why); no warnings about the peers' ways."""
    torch.set_num_threads(1)
    torch.empty(31 << 20, dtype=torch.uint8)
    warnings.simplefilter("ignore")

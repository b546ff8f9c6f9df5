"""Small tables of constants on a device, made once: with a copy from the host, every reading would wait for a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor


def kept_table(rows: Sequence[Sequence[float]], columns: int, device: torch.device) -> Tensor:
    """Returns ``rows`` as float64 [rows, columns], not to be changed: equal numbers share memory."""
    return _table(tuple(map(tuple, rows)), columns, device)


@lru_cache(maxsize=64)
def _table(rows: tuple[tuple[float, ...], ...], columns: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it outlives the caller's mode
        return torch.tensor(rows, dtype=torch.float64, device=device).view(len(rows), columns)

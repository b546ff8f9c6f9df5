"""Tensors of every memory layout, by name: functions of (dtype, device) that give a tensor to read or write."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Layout = Callable[[torch.dtype, str], Tensor]


def _storage(numel: int, dtype: torch.dtype, device: str) -> Tensor:
    """Small whole numbers of both signs, exact in every dtype."""
    return (torch.arange(numel, device=device) % 37 - 18).to(dtype)


WRITABLE: dict[str, Layout] = {
    "contiguous": lambda t, d: _storage(5 * 401, t, d).view(5, 401),
    "transposed": lambda t, d: _storage(97 * 43, t, d).view(97, 43).t(),
    "permuted": lambda t, d: _storage(7 * 11 * 29, t, d).view(7, 11, 29).permute(2, 0, 1),
    "every third": lambda t, d: _storage(3 * 1500, t, d)[::3],
    "every second of rows and columns": lambda t, d: _storage(4000, t, d).view(50, 80)[1::2, ::2],
    "a block of a matrix": lambda t, d: _storage(64 * 70, t, d).view(64, 70)[3:41, 5:38],
    "one column": lambda t, d: _storage(300 * 9, t, d).view(300, 9)[:, 4],
    "starts at an odd address": lambda t, d: _storage(1001, t, d)[3:],
    "channels last": lambda t, d: (
        _storage(2 * 6 * 9 * 11, t, d)
        .view(2, 6, 9, 11)
        .contiguous(memory_format=torch.channels_last)
    ),
    "rows with gaps": lambda t, d: _storage(40 * 50, t, d).as_strided((40, 33), (50, 1), 2),
    "sizes of one": lambda t, d: _storage(130, t, d).view(1, 130, 1)[:, ::2],
    "six dimensions": lambda t, d: (
        _storage(3 * 4 * 5 * 2 * 3 * 2, t, d).view(3, 4, 5, 2, 3, 2).permute(5, 0, 3, 1, 4, 2)
    ),
    "0-dim": lambda t, d: _storage(3, t, d)[1],
    "0-dim from a matrix": lambda t, d: _storage(12, t, d).view(3, 4)[1, 2],
    "empty": lambda t, d: _storage(0, t, d),
    "empty with sizes": lambda t, d: _storage(0, t, d).view(4, 0, 3),
}

READABLE: dict[str, Layout] = {
    **WRITABLE,
    "expanded rows": lambda t, d: _storage(33, t, d).expand(50, 33),
    "expanded columns": lambda t, d: _storage(50, t, d).view(50, 1).expand(50, 70),
    "one number expanded": lambda t, d: _storage(3, t, d)[2].expand(41, 100),
    "windows that overlap": lambda t, d: _storage(900, t, d).unfold(0, 40, 7),
    "negative view": lambda t, d: torch._neg_view(_storage(1234, t, d)),
}

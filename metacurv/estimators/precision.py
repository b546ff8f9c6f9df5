"""The precision of sums and factors: float32 at least, whatever the model's own dtype."""

from __future__ import annotations

import torch
from torch import Tensor

_WIDE = (torch.float32, torch.float64)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64, else float32."""
    return dtype if dtype in _WIDE else torch.float32


def wide(x: Tensor) -> Tensor:
    """Returns x in ``wide_dtype`` of its dtype; x itself where that is its own."""
    return x if x.dtype in _WIDE else x.to(torch.float32)

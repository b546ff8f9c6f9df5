"""Precisions of sums and factors, and the steps of differences."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

_WIDE = (torch.float32, torch.float64)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns float64 for float64, else float32."""
    return dtype if dtype in _WIDE else torch.float32


def wide(x: Tensor) -> Tensor:
    """Returns x in ``wide_dtype`` of its dtype; x itself where that is its own."""
    return x if x.dtype in _WIDE else x.to(torch.float32)


def relative_step(dtypes: Iterable[torch.dtype]) -> float:
    """Returns the step of a central difference, relative to the size of what it moves, for the coarsest of ``dtypes``."""
    coarsest = max(torch.finfo(dtype).eps for dtype in dtypes)
    return 0.15 * math.pow(coarsest, 1 / 3)


def root_mean_square(tensors: Sequence[Tensor]) -> float:
    """Returns the root mean square over all elements, in float64; 1 for zeros, which set no scale."""
    norms = [torch.linalg.vector_norm(x.detach(), dtype=torch.float64) for x in tensors]
    norm = float(torch.linalg.vector_norm(torch.stack(norms)))
    if not math.isfinite(norm):
        raise ValueError(f"the model's parameters must be finite, got a norm of {norm}")
    return norm / math.sqrt(sum(x.numel() for x in tensors)) if norm else 1.0

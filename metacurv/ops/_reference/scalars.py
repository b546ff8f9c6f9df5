"""Conversion of numbers to tensors on a device without a copy from the host."""

from __future__ import annotations

import torch
from torch import Tensor


def scalar(value: float | Tensor, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """Returns ``value`` as a 0-dim tensor.

    ``torch.tensor(value, device="cuda")`` would copy from the host, and so wait for all the work that the GPU has queued.
    """
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)

"""Numbers as tensors on a device, without a copy from the host."""

from __future__ import annotations

import torch
from torch import Tensor


def scalar(value: float | Tensor, dtype: torch.dtype, device: torch.device | None) -> Tensor:
    """0-dim. ``torch.tensor(value, device="cuda")`` would copy, and so wait for all that the GPU has to do before."""
    if isinstance(value, Tensor):
        return value.to(device, dtype)
    return torch.full((), value, dtype=dtype, device=device)

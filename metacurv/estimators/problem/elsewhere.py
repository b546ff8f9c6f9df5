"""Other values of what a loss depends on: what does not change with them is a constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Again = Callable[[], Tensor]
"""Computes a loss once more, elsewhere, with its graph."""

_SHARE = 0.05  # several units in the last place of bfloat16
SEED = 0x5EED0F17  # no seed that a user's data are likely to share


def elsewhere(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Returns each tensor moved at random by 5 % of its size, as leaves that require a gradient."""
    generator = torch.Generator().manual_seed(SEED)
    moved = []
    for x in tensors:
        size = x.detach().double().square().mean().sqrt() if x.numel() else torch.zeros(())
        noise = torch.randn(x.shape, generator=generator).to(x.device, torch.float64)
        step = noise * (size if size > 0 else 1.0) * _SHARE
        moved.append((x.detach() + step).to(x.dtype).requires_grad_())
    return moved

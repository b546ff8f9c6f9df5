"""Shape functions of the native ops, so that ``torch.compile`` and fake tensors can trace them."""

from __future__ import annotations

import torch
from torch import Tensor


@torch.library.register_fake("metacurv::rademacher_")
def _(
    tensors: list[Tensor], seed: int, probe: Tensor, numbers: list[int], offsets: list[int]
) -> None:
    return None


@torch.library.register_fake("metacurv::signed_sum")
def _(
    tensors: list[Tensor], seed: int, probe: Tensor, numbers: list[int], offsets: list[int]
) -> Tensor:
    return probe.new_empty(len(tensors), dtype=torch.float64)


@torch.library.register_fake("metacurv::hutchinson_accumulate_")
def _(
    mean: Tensor,
    m2: Tensor,
    count: Tensor,
    products: list[Tensor],
    seed: int,
    probe: Tensor,
    numbers: list[int],
    offsets: list[int],
) -> None:
    return None


@torch.library.register_fake("metacurv::reciprocal_lr_")
def _(scale: Tensor, trace: Tensor, alpha: float) -> None:
    return None


@torch.library.register_fake("metacurv::signed_matmul")
def _(
    x: Tensor, seed: int, probe: Tensor, number: int, rows: int, cols: int, transpose: bool
) -> Tensor:
    return x.new_empty(x.shape[0], rows if transpose else cols)

"""Shape functions of the native ops, so that ``torch.compile`` and fake tensors can trace them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

_F = TypeVar("_F", bound=Callable[..., object])


def _shape_of(op: str) -> Callable[[_F], _F]:
    """Wraps ``torch.library.register_fake`` so that it keeps the type of the function it decorates."""
    register: Callable[[_F], _F] = torch.library.register_fake(f"metacurv::{op}")
    return register


@_shape_of("rademacher_")
def _(
    tensors: list[Tensor], seed: int, probe: Tensor, numbers: list[int], offsets: list[int]
) -> None:
    return None


@_shape_of("rademacher_.number")
def _(tensors: list[Tensor], seed: int, probe: int, numbers: list[int], offsets: list[int]) -> None:
    return None


@_shape_of("signed_sum.number")
def _(
    tensors: list[Tensor], seed: int, probe: int, numbers: list[int], offsets: list[int]
) -> Tensor:
    return tensors[0].new_empty(len(tensors), dtype=torch.float64)


@_shape_of("signed_sum")
def _(
    tensors: list[Tensor], seed: int, probe: Tensor, numbers: list[int], offsets: list[int]
) -> Tensor:
    return probe.new_empty(len(tensors), dtype=torch.float64)


@_shape_of("hutchinson_accumulate_")
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


@_shape_of("reciprocal_lr_")
def _(scale: Tensor, trace: Tensor, alpha: float) -> None:
    return None


@_shape_of("softmax_factor")
def _(sqrt_p: Tensor, root: Tensor, seed: int, probe: Tensor, number: int, n_probes: int) -> Tensor:
    return sqrt_p.new_empty(n_probes, *sqrt_p.shape)


@_shape_of("softmax_factor.number")
def _(sqrt_p: Tensor, root: Tensor, seed: int, probe: int, number: int, n_probes: int) -> Tensor:
    return sqrt_p.new_empty(n_probes, *sqrt_p.shape)


@_shape_of("row_products")
def _(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
    return a.new_empty(u.shape[0], 2, dtype=torch.float64)


@_shape_of("chain_draws")
def _(
    log_p: Tensor,
    sample_weight: Tensor,
    seed: int,
    probe: int,
    n_probes: int,
    inputs: list[Tensor],
    weights: list[Tensor],
    slopes: list[Tensor],
    rectified: list[bool],
) -> Tensor:
    return log_p.new_empty(n_probes, 2 * len(inputs), dtype=torch.float64)


@_shape_of("chain_columns")
def _(
    log_p: Tensor,
    sample_weight: Tensor,
    start: int,
    stop: int,
    inputs: list[Tensor],
    weights: list[Tensor],
    slopes: list[Tensor],
    rectified: list[bool],
) -> Tensor:
    return log_p.new_empty(stop - start, 2 * len(inputs), dtype=torch.float64)

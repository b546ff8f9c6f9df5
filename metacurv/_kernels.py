"""The compiled ops, under the names and positional signatures of their torch twins in ``_reference``.

Where a twin takes a probe in a tensor, ``rademacher_`` and ``signed_sum`` take a number as well, for tensors on the CPU.
Autograd does not see what a kernel writes, so every function here reports the tensors it wrote to, as an in-place torch op
does.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from metacurv import _chain, _reference

_THIS = sys.modules[__name__]
_ops = torch.ops.metacurv
_FLOATS = (torch.float32, torch.float64)  # the dtypes that softmax_factor and row_products serve


def rademacher_(
    tensors: Sequence[Tensor],
    seed: int,
    probe: int | Tensor,
    numbers: Sequence[int],
    offsets: Sequence[int],
) -> None:
    if isinstance(probe, int):
        torch.ops.metacurv.rademacher_.number(tensors, seed, probe, numbers, offsets)
    else:
        torch.ops.metacurv.rademacher_.default(tensors, seed, probe, numbers, offsets)
    increment_version(tensors)


def signed_sum(
    tensors: Sequence[Tensor],
    seed: int,
    probe: int | Tensor,
    numbers: Sequence[int],
    offsets: Sequence[int],
) -> Tensor:
    op = torch.ops.metacurv.signed_sum
    overload = op.number if isinstance(probe, int) else op.default
    sums: Tensor = overload(tensors, seed, probe, numbers, offsets)
    return sums


def hutchinson_accumulate_(
    mean: Tensor,
    m2: Tensor,
    count: Tensor,
    products: Sequence[Tensor],
    seed: int,
    probe: Tensor,
    numbers: Sequence[int],
    offsets: Sequence[int],
) -> None:
    torch.ops.metacurv.hutchinson_accumulate_.default(
        mean, m2, count, products, seed, probe, numbers, offsets
    )
    increment_version((mean, m2, count))


def reciprocal_lr_(scale: Tensor, trace: Tensor, alpha: float) -> None:
    torch.ops.metacurv.reciprocal_lr_.default(scale, trace, alpha)
    increment_version(scale)


def softmax_factor(
    sqrt_p: Tensor, root: Tensor, seed: int, probe: int | Tensor, number: int, n_probes: int
) -> Tensor:
    if sqrt_p.dtype not in _FLOATS:
        return _reference.softmax_factor(sqrt_p, root, seed, probe, number, n_probes)
    op = _ops.softmax_factor
    if isinstance(probe, Tensor):
        overload = op.default
    elif sqrt_p.is_cuda:
        overload = op.default
        probe = torch.full((), probe, device=sqrt_p.device)
    else:
        overload = op.number
    u: Tensor = overload(sqrt_p, root, seed, probe, number, n_probes)
    return u


def row_products(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
    dtype = a.dtype
    if dtype not in _FLOATS or u.dtype is not dtype or w.dtype is not dtype:
        return _reference.row_products(a, u, w)
    sums: Tensor = _ops.row_products.default(a, u, w)
    return sums


# A layer whose weight has more elements than this falls out of a core's cache, and is left to torch's matrix product.
_MOST_WEIGHT = 1 << 16
# exp is not vectorised in the compiled chain.
_MOST_LOGITS = 1 << 16


def chain_is_compiled(log_p: Tensor, weights: Sequence[Tensor]) -> bool:
    return (
        log_p.dtype is torch.float32
        and log_p.is_cpu
        and log_p.numel() <= _MOST_LOGITS
        and all(weight.numel() <= _MOST_WEIGHT for weight in weights)
    )


def chain_draws(
    log_p: Tensor,
    sample_weight: Tensor,
    seed: int,
    probe: int,
    n_probes: int,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    slopes: Sequence[Tensor],
    rectified: Sequence[bool],
) -> Tensor:
    chain = (inputs, weights, slopes, rectified)
    if not chain_is_compiled(log_p, weights):
        return _chain.chain_draws(_THIS, log_p, sample_weight, seed, probe, n_probes, *chain)
    table: Tensor = _ops.chain_draws.default(log_p, sample_weight, seed, probe, n_probes, *chain)
    return table


def chain_columns(
    log_p: Tensor,
    sample_weight: Tensor,
    start: int,
    stop: int,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    slopes: Sequence[Tensor],
    rectified: Sequence[bool],
) -> Tensor:
    chain = (inputs, weights, slopes, rectified)
    if not chain_is_compiled(log_p, weights):
        return _chain.chain_columns(_THIS, log_p, sample_weight, start, stop, *chain)
    table: Tensor = _ops.chain_columns.default(log_p, sample_weight, start, stop, *chain)
    return table

"""This module calls every op on larger inputs, for a kernel and its twin: dtypes, layouts, and sizes with a remainder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metacurv import ops

Case = Callable[[str, torch.device], Sequence[Tensor]]  # the results of a backend on a device

_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
_SEED, _PROBE = 2**64 - 3, 2**32 - 2


def _numbers(device: torch.device, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns normal numbers on the CPU, where kernel and twin add in one order; on a GPU whole ones, exact in any order."""
    generator = torch.Generator().manual_seed(math.prod(shape))
    if device.type == "cpu":
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    return torch.randint(-8, 9, shape, generator=generator).to(device, dtype)


def _lists(device: torch.device) -> list[Tensor]:
    """Returns tensors of every dtype: empty, small, large enough to be divided among threads, and strided."""
    shapes = [(0,), (1,), (131,), (40_001,)]
    tensors = []
    for dtype in _DTYPES:
        tensors += [_numbers(device, *shape, dtype=dtype) for shape in shapes]
        tensors.append(_numbers(device, 50, 60, dtype=dtype).t()[1::2])
    return tensors


def rademacher_(backend: str, device: torch.device) -> Sequence[Tensor]:
    """The offsets are no multiples of a block."""
    tensors = _lists(device)
    offsets = [2**40 + 7 * t for t in range(len(tensors))]
    ops.rademacher_(tensors, seed=_SEED, probe=_PROBE, offsets=offsets, backend=backend)
    return tensors


def signed_sum(backend: str, device: torch.device) -> Sequence[Tensor]:
    """The probe is a number and a tensor."""
    tensors = _lists(device)
    offsets = [2**40 + 7 * t for t in range(len(tensors))]
    return [
        ops.signed_sum(tensors, seed=_SEED, probe=probe, offsets=offsets, backend=backend)
        for probe in (_PROBE, torch.tensor(_PROBE, device=device))
    ]


def hutchinson_accumulate_(backend: str, device: torch.device) -> Sequence[Tensor]:
    """The statistics take three samples in."""
    products = _lists(device)
    n = len(products) + 1
    mean, m2 = (torch.zeros(n, dtype=torch.float64, device=device) for _ in range(2))
    count = torch.zeros((), dtype=torch.int64, device=device)
    for probe in range(3):
        ops.hutchinson_accumulate_(
            mean, m2, count, products, seed=_SEED, probe=probe, backend=backend
        )
    return [mean, m2, count]


def reciprocal_lr_(backend: str, device: torch.device) -> Sequence[Tensor]:
    """The traces are of all kinds, and one of the scales is not a number."""
    scales = []
    for trace in (0.3, 12.5, 1e30, -1.0, math.inf, math.nan):
        for before in (0.3, math.nan):
            scales.append(torch.tensor(before, device=device))
            reading = torch.tensor(trace, dtype=torch.float64, device=device)
            ops.reciprocal_lr_(scales[-1], reading, alpha=0.1, backend=backend)
    return scales


# Three linear layers of widths 10, 37, 9 and 100 from the top, a ReLU and another activation between them.


def _softmax(device: torch.device) -> tuple[Tensor, Tensor]:
    """Returns log p and the weights of the examples."""
    return _numbers(device, 50, 10).log_softmax(1), _numbers(device, 50).abs()


def _chain(
    device: torch.device,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[bool]]:
    """Returns inputs, weights, slopes, and which of the slopes are those of a ReLU."""
    inputs = [_numbers(device, 50, width) for width in (37, 9, 100)]
    weights = [_numbers(device, 10, 37), _numbers(device, 37, 9)]
    return inputs, weights, [inputs[0], _numbers(device, 50, 9)], [True, False]


def chain_draws(backend: str, device: torch.device) -> Sequence[Tensor]:
    """The op draws three probes."""
    run = ops.implementation(backend, device)
    inputs, weights, slopes, rectified = _chain(device)
    return [run.chain_draws(*_softmax(device), -3, _PROBE, 3, inputs, weights, slopes, rectified)]


def chain_columns(backend: str, device: torch.device) -> Sequence[Tensor]:
    """The op takes all nine columns."""
    run = ops.implementation(backend, device)
    inputs, weights, slopes, rectified = _chain(device)
    return [run.chain_columns(*_softmax(device), 0, 9, inputs, weights, slopes, rectified)]

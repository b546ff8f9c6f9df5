"""The torch twin of every native op: the specification, and the fallback where the compiled module is missing.

Each function does in plain tensor arithmetic, on any device and without a host sync, what the kernel of the same
name does. On CPU the two agree bit for bit, sums included: the order of summation is part of the specification.
``csrc/philox.h`` writes out the random-number contract.

Source of the generator: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv import _chain
from metacurv._scalars import scalar
from metacurv._sums import CHUNK, PIECE, WORD, chunk_sums, halved, in_order

BLOCK = 128  # elements served by one Philox call
MIN_SCALE = 2.0**-40  # the smallest scale of reciprocal_lr_

_MASK = 0xFFFFFFFF
_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85


def _rounds(counter: list[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Runs ten Philox rounds on int64 tensors that hold uint32 values; products wrap modulo 2^64, which keeps their bits."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _MASK) ^ c1 ^ k0,
            p1 & _MASK,
            ((p0 >> 32) & _MASK) ^ c3 ^ k1,
            p0 & _MASK,
        )
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return [c0, c1, c2, c3]


def philox4x32_10(counter: Sequence[int], key: Sequence[int]) -> tuple[int, int, int, int]:
    """Computes one Philox4x32-10 block: four uint32 from a counter [4] and a key [2] of uint32."""
    out = _rounds([torch.tensor(int(c)) for c in counter], (int(key[0]), int(key[1])))
    return tuple(int(word) for word in out)  # type: ignore[return-value]


def negative_bits(begin: int, end: int, *, seed: int, probe: Tensor, number: int) -> Tensor:
    """Returns the sign bits of elements begin ... end - 1 of parameter ``number``: int64 [end - begin], where 1 means -1."""
    first_block = begin // BLOCK
    blocks = torch.arange(first_block, (end - 1) // BLOCK + 1, device=probe.device)
    counter = [
        blocks & _MASK,
        blocks >> 32,
        torch.full_like(blocks, number),
        (probe & _MASK).expand_as(blocks),
    ]
    words = torch.stack(_rounds(counter, (seed & _MASK, seed >> 32 & _MASK)), dim=1)  # [n, 4]
    bits = words.unsqueeze(-1) >> torch.arange(WORD, device=probe.device) & 1  # [n, 4, 32]
    start = begin - first_block * BLOCK
    return bits.flatten()[start : start + end - begin]


def rademacher_(
    tensors: Sequence[Tensor],
    seed: int,
    probe: Tensor,
    numbers: Sequence[int],
    offsets: Sequence[int],
) -> None:
    """Fills every tensor with +1 and -1."""
    for tensor, number, offset in zip(tensors, numbers, offsets, strict=True):
        signs = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
        for begin in range(0, tensor.numel(), PIECE):
            end = min(begin + PIECE, tensor.numel())
            bits = negative_bits(
                offset + begin, offset + end, seed=seed, probe=probe, number=number
            )
            signs[begin:end] = 1 - 2 * bits
        tensor.copy_(signs.view(tensor.shape))


def _signed_sum(tensor: Tensor, *, offset: int, seed: int, probe: Tensor, number: int) -> Tensor:
    """Returns the signed sum of one tensor: 0-dim float64."""
    if tensor.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=tensor.device)
    flat = tensor.detach().reshape(-1)
    last = offset + flat.numel()
    sums = []
    for piece in range(offset // PIECE * PIECE, last, PIECE):
        begin, end = max(piece, offset), min(piece + PIECE, last)
        bits = negative_bits(begin, end, seed=seed, probe=probe, number=number)
        x = flat[begin - offset : end - offset].to(torch.float64)
        lead = begin - begin // CHUNK * CHUNK
        sums.append(chunk_sums(torch.nn.functional.pad(torch.where(bits == 1, -x, x), (lead, 0))))
    return in_order(torch.cat(sums), dim=0)


def signed_sum(
    tensors: Sequence[Tensor],
    seed: int,
    probe: Tensor,
    numbers: Sequence[int],
    offsets: Sequence[int],
) -> Tensor:
    """Returns sum_i v_i x_i of each tensor: float64 [T]."""
    sums = [
        _signed_sum(tensor, offset=offset, seed=seed, probe=probe, number=number)
        for tensor, number, offset in zip(tensors, numbers, offsets, strict=True)
    ]
    return torch.stack(sums) if sums else probe.new_empty(0, dtype=torch.float64)


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
    """Applies Welford's update of mean and M2 with the signed sums of ``products`` and, last, their total."""
    sums = signed_sum(products, seed, probe, numbers, offsets)
    total = in_order(sums, dim=0) if sums.numel() else sums.new_zeros(())
    samples = torch.cat([sums, total.view(1)])
    count.add_(1)
    delta = samples - mean
    mean.add_(delta / count)
    m2.add_(delta * (samples - mean))


def reciprocal_lr_(scale: Tensor, trace: Tensor, alpha: float) -> None:
    """Sets scale <- 1 / (1 + alpha max(trace, 0)), kept in [MIN_SCALE, 1]; unchanged where the trace is not finite."""
    previous = scale.to(torch.float64)
    kept = torch.where((previous >= MIN_SCALE) & (previous <= 1), previous, 1.0)
    reading = trace.to(torch.float64)
    new = (1 / (1 + alpha * reading.clamp(min=0))).clamp(min=MIN_SCALE)
    scale.copy_(torch.where(torch.isfinite(reading), new, kept))


SUM_LANES = 32  # partial sums of a row of softmax_factor


def softmax_factor(
    sqrt_p: Tensor, root: Tensor, seed: int, probe: int | Tensor, number: int, n_probes: int
) -> Tensor:
    """Returns u_k = root (t - t^2 sum_c t) with t = sqrt_p v_k: sqrt_p [M, C], root [M] -> u [n_probes, M, C].

    Element c of a row is added to lane c % 32 in index order, in float64; then the lanes are halved as a tree. The sum is
    rounded to sqrt_p's dtype, in which the rest is done.
    """
    u = sqrt_p.new_empty(n_probes, *sqrt_p.shape)
    if u.numel() == 0:
        return u
    first = scalar(probe, torch.int64, sqrt_p.device)
    for k in range(n_probes):
        rademacher_([u[k]], seed, first + k, [number], [0])
        t = sqrt_p * u[k]
        sums = _row_sums(t).to(t.dtype)
        u[k] = root.unsqueeze(1) * (t - t * t * sums.unsqueeze(1))
    return u


def _row_sums(rows: Tensor) -> Tensor:
    """Returns the sum of each row of [M, C]: float64 [M]."""
    steps = -(-rows.shape[1] // SUM_LANES)
    padded = torch.nn.functional.pad(rows.to(torch.float64), (0, steps * SUM_LANES - rows.shape[1]))
    return halved(in_order(padded.view(-1, steps, SUM_LANES), dim=1))


def row_products(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Returns sum_n ||a_n||^2 (u_rn . w_rn) and sum_n u_rn . w_rn: a [N, I], u and w [R, N, O] -> float64 [R, 2]."""
    norms = a.to(torch.float64).square().sum(1)
    draws = max(1, PIECE // max(1, u.shape[1] * u.shape[2]))
    products = torch.cat(
        [
            (u_piece.to(torch.float64) * w_piece.to(torch.float64)).sum(2)
            for u_piece, w_piece in zip(torch.split(u, draws), torch.split(w, draws), strict=True)
        ]
    )
    return torch.stack([products @ norms, products.sum(1)], dim=1)


def chain_draws(*arguments: Any) -> Tensor:
    """Forwards to the composition in ``metacurv._chain``."""
    return _chain.chain_draws(sys.modules[__name__], *arguments)


def chain_columns(*arguments: Any) -> Tensor:
    """Forwards to the composition in ``metacurv._chain``."""
    return _chain.chain_columns(sys.modules[__name__], *arguments)


def chain_is_compiled(log_p: Tensor, weights: Sequence[Tensor]) -> bool:
    """Tells whether a kernel serves a chain of these layers: never on the reference backend."""
    return False

"""The random-number generator of all ops; ``csrc/philox.h`` writes the contract out.

Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv.ops._reference.sums import WORD

BLOCK = 128  # elements served by one Philox call

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

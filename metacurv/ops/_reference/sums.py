"""Sums in an order that is part of the ops' specification, so that kernel and twin agree to the bit."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 32  # lanes of a sum, and elements served by one word of a Philox block
CHUNK = 1 << 15  # elements summed lane by lane before partial sums are added
PIECE = 32 * CHUNK  # elements handled at a time, so that temporaries stay small


def in_order(terms: Tensor, dim: int) -> Tensor:
    """Sums along ``dim``, one term after the other (``Tensor.sum`` leaves its order open; a running sum cannot)."""
    return terms.cumsum(dim).select(dim, -1)


def chunk_sums(terms: Tensor) -> Tensor:
    """Sums each chunk of ``terms``, float64 [n] that starts at a chunk boundary: the result is [ceil(n / CHUNK)].

    Element i is added to lane i % 32 in index order; then the 32 lanes are halved as a tree.
    """
    rows = min(-(-terms.numel() // WORD), CHUNK // WORD)
    chunks = -(-terms.numel() // (rows * WORD))
    padded = torch.nn.functional.pad(terms, (0, chunks * rows * WORD - terms.numel()))
    return halved(in_order(padded.view(chunks, rows, WORD), dim=1))


def halved(lanes: Tensor) -> Tensor:
    """Sums [n, 2^k] to [n]: adds the second half of the lanes to the first until one lane is left."""
    while lanes.shape[1] > 1:
        half = lanes.shape[1] // 2
        lanes = lanes[:, :half] + lanes[:, half:]
    return lanes[:, 0]

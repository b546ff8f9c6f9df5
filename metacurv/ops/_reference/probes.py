"""Random signs, sums with them, and running statistics of such sums, in plain torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv.ops._reference.philox import negative_bits
from metacurv.ops._reference.scalars import scalar
from metacurv.ops._reference.sums import CHUNK, PIECE, chunk_sums, in_order


class ProbeOps:
    """The ops on lists of tensors; seed and probe, numbers and offsets are those of ``metacurv.ops``."""

    def rademacher_(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        probe: int | Tensor,
        numbers: Sequence[int],
        offsets: Sequence[int],
        /,
    ) -> None:
        """Fills every tensor with +1 and -1."""
        for tensor, number, offset in zip(tensors, numbers, offsets, strict=True):
            index = scalar(probe, torch.int64, tensor.device)
            signs = torch.empty(tensor.numel(), dtype=tensor.dtype, device=tensor.device)
            for begin in range(0, tensor.numel(), PIECE):
                end = min(begin + PIECE, tensor.numel())
                bits = negative_bits(
                    offset + begin, offset + end, seed=seed, probe=index, number=number
                )
                signs[begin:end] = 1 - 2 * bits
            tensor.copy_(signs.view(tensor.shape))

    def signed_sum(
        self,
        tensors: Sequence[Tensor],
        seed: int,
        probe: int | Tensor,
        numbers: Sequence[int],
        offsets: Sequence[int],
        /,
    ) -> Tensor:
        """Returns sum_i v_i x_i of each tensor: float64 [T]."""
        sums = [
            _signed_sum(tensor, offset=offset, seed=seed, probe=probe, number=number)
            for tensor, number, offset in zip(tensors, numbers, offsets, strict=True)
        ]
        if sums:
            return torch.stack(sums)
        device = probe.device if isinstance(probe, Tensor) else None
        return torch.empty(0, dtype=torch.float64, device=device)

    def hutchinson_accumulate_(
        self,
        mean: Tensor,
        m2: Tensor,
        count: Tensor,
        products: Sequence[Tensor],
        seed: int,
        probe: int | Tensor,
        numbers: Sequence[int],
        offsets: Sequence[int],
        /,
    ) -> None:
        """Applies Welford's update of mean and M2 with the signed sums of ``products`` and, last, their total."""
        sums = self.signed_sum(products, seed, probe, numbers, offsets)
        total = in_order(sums, dim=0) if sums.numel() else sums.new_zeros(())
        samples = torch.cat([sums, total.view(1)])
        count.add_(1)
        delta = samples - mean
        mean.add_(delta / count)
        m2.add_(delta * (samples - mean))


def _signed_sum(
    tensor: Tensor, *, offset: int, seed: int, probe: int | Tensor, number: int
) -> Tensor:
    """Returns the signed sum of one tensor: 0-dim float64."""
    if tensor.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=tensor.device)
    index = scalar(probe, torch.int64, tensor.device)
    flat = tensor.detach().reshape(-1)
    last = offset + flat.numel()
    sums = []
    for piece in range(offset // PIECE * PIECE, last, PIECE):
        begin, end = max(piece, offset), min(piece + PIECE, last)
        bits = negative_bits(begin, end, seed=seed, probe=index, number=number)
        x = flat[begin - offset : end - offset].to(torch.float64)
        lead = begin - begin // CHUNK * CHUNK
        sums.append(chunk_sums(torch.nn.functional.pad(torch.where(bits == 1, -x, x), (lead, 0))))
    return in_order(torch.cat(sums), dim=0)


def _sums_with_number(
    tensors: list[Tensor], seed: int, probe: int, numbers: list[int], offsets: list[int]
) -> Tensor:
    return tensors[0].new_empty(len(tensors), dtype=torch.float64)


def _sums(
    tensors: list[Tensor], seed: int, probe: Tensor, numbers: list[int], offsets: list[int]
) -> Tensor:
    return probe.new_empty(len(tensors), dtype=torch.float64)


# What kernels return of fake tensors, for torch.compile; None of those that only write.
SHAPES: dict[str, Callable[..., Any]] = {
    "signed_sum": _sums,
    "signed_sum.number": _sums_with_number,
}

"""Tensors that are spread over processes (``DTensor``): what this process holds of them, and sums over all of them.

``fully_shard`` makes a model's parameters such tensors. Arithmetic on the local parts needs no communication, and works where
operations on many tensors at once have no rule for spread ones.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor


def is_spread(tensor: Tensor) -> bool:
    """Tells whether a tensor is a ``DTensor``; where nobody has imported that class, none is."""
    tensors = sys.modules.get("torch.distributed.tensor")
    return tensors is not None and isinstance(tensor, tensors.DTensor)


@torch.no_grad()
def local(tensor: Tensor) -> Tensor:
    """Returns this process's part of a tensor, which shares its memory; the tensor itself where it is not spread."""
    if not is_spread(tensor):
        return tensor
    part: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return part


def locals_of(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Returns this process's parts of tensors."""
    return [local(tensor) for tensor in tensors]


def sum_over_shards(parts: Sequence[Tensor], of: Sequence[Tensor]) -> Tensor:
    """Adds numbers that belong to the local parts of tensors, over all processes that hold parts of them.

    Args:
        parts: a tensor of numbers for each tensor, of one shape, on its device.
        of: the tensors; not empty.

    Returns:
        The sum, the same on every process. Where no tensor is spread, nothing is communicated.
    """
    whole: list[Tensor] = []
    spread: dict[tuple[Any, Any], list[Tensor]] = {}
    for part, tensor in zip(parts, of, strict=True):
        if is_spread(tensor):
            key = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
            spread.setdefault(key, []).append(part)
        else:
            whole.append(part)
    sums = [torch.stack(whole).sum(0)] if whole else []
    for (mesh, placements), numbers in spread.items():
        from torch.distributed.tensor import DTensor, Partial, Replicate

        # Along the other dimensions of the mesh all hold the same.
        as_parts = [Partial() if placement.is_shard() else Replicate() for placement in placements]
        total = torch.stack(numbers).sum(0)
        sums.append(DTensor.from_local(total, mesh, as_parts, run_check=False).full_tensor())
    return torch.stack(sums).sum(0)

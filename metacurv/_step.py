"""The torch twins of ``step_direction_`` and ``move_``: one step of an optimizer as a direction, and moves along it.

Arithmetic is in float32, for float64 tensors in float64, operation by operation, and rounded once to the tensor's dtype.
``keep``, ``lr`` and ``distance`` are rounded to the dtype of the arithmetic first.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv._scalars import scalar
from metacurv._sums import PIECE, chunk_sums, in_order


def _computed_in(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _sum_of_squares(x: Tensor) -> Tensor:
    """Returns the sum of squares, 0-dim float64, added in the order of ``signed_sum``."""
    if x.numel() == 0:
        return torch.zeros((), dtype=torch.float64, device=x.device)
    pieces = torch.split(x.reshape(-1), PIECE)
    return in_order(torch.cat([chunk_sums(p.to(torch.float64).square()) for p in pieces]), dim=0)


def step_direction_(
    direction: Sequence[Tensor],
    before: Sequence[Tensor],
    after: Sequence[Tensor],
    keep: Sequence[float],
    lr: float | Tensor,
) -> Tensor:
    """Sets direction <- (keep before - after) / lr, tensor by tensor.

    Returns:
        float64 [3]: sum of direction^2, sum of before^2, and the number of elements of direction that are not finite. Sums
        are taken tensor by tensor, in the order of ``signed_sum``, and then added in order.
    """
    # The divisor is a tensor, as on CUDA torch divides by a number by multiplying with its reciprocal.
    divisor = scalar(lr, torch.float64, direction[0].device if direction else None)
    sums = []
    for u, x, y, factor in zip(direction, before, after, keep, strict=True):
        dtype = _computed_in(u)
        starts = _sum_of_squares(x)
        u.copy_((x.to(dtype) * factor - y.to(dtype)) / divisor.to(dtype))
        bad = torch.isfinite(u).logical_not().sum(dtype=torch.float64)
        sums.append(torch.stack([_sum_of_squares(u), starts, bad]))
    return in_order(torch.stack(sums), dim=0) if sums else divisor.new_zeros(3)


def move_(
    parameters: Sequence[Tensor],
    start: Sequence[Tensor],
    direction: Sequence[Tensor],
    distance: float | Tensor,
) -> None:
    """Sets parameters <- start + distance direction, tensor by tensor."""
    for p, x, u in zip(parameters, start, direction, strict=True):
        dtype = _computed_in(p)
        factor = scalar(distance, torch.float64, p.device).to(dtype)
        p.copy_(x.to(dtype) + factor * u.to(dtype))

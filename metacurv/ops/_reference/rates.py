"""The learning-rate update in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SCALE = 2.0**-40  # the smallest scale of reciprocal_lr_


class RateOps:
    """The ops on learning rates."""

    def reciprocal_lr_(self, scale: Tensor, trace: Tensor, alpha: float, /) -> None:
        """Sets scale <- 1 / (1 + alpha max(trace, 0)), kept in [MIN_SCALE, 1]; unchanged where the trace is not finite."""
        previous = scale.to(torch.float64)
        kept = torch.where((previous >= MIN_SCALE) & (previous <= 1), previous, 1.0)
        reading = trace.to(torch.float64)
        new = (1 / (1 + alpha * reading.clamp(min=0))).clamp(min=MIN_SCALE)
        scale.copy_(torch.where(torch.isfinite(reading), new, kept))

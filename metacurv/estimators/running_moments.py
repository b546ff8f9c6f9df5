"""Mean and sum of squared deviations of vectors that arrive in batches."""

from __future__ import annotations

import torch
from torch import Tensor


class RunningMoments:
    """Merges batches of samples without keeping them (Chan, Golub, LeVeque 1983, eq. 2.1).

    ``count``: the number of samples so far. ``mean``, ``m2``: float64 [D].
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)

    def add(self, samples: Tensor) -> None:
        """Merges a batch of samples, float64 [m, D]."""
        mean = samples.mean(0)
        m2 = (samples - mean).square().sum(0)
        m, n = len(samples), self.count + len(samples)
        if self.count:
            delta = mean - self.mean
            self.m2 += m2 + delta.square() * (self.count * m / n)
            self.mean += delta * (m / n)
        else:  # most readings end with their first batch
            self.mean, self.m2 = mean, m2
        self.count = n

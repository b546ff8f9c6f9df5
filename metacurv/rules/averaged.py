"""The directional rule where the average of the iterates is what counts: the largest rate that still serves it.

An average takes the noise out of iterates that a large rate scatters, so the best rate for it is larger than for the last iterate,
up to where the average itself stops descending. Besides n and d along the step (``rules.directional``) it takes the slopes of
the loss along the average's own move, at its beginning (s0) and end (s1): s0 / (s0 - s1) is how much further the
average could have gone. Source: rounds 3 and later in ``docs/learning-rate-free.md``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.rules.directional import DirectionalState


@dataclass(frozen=True)
class AverageReading:
    """-g . D at the old and the new average, D the move between them; 0-dim float64."""

    at_old: Tensor
    at_new: Tensor


class AveragedState(DirectionalState):
    """As ``DirectionalState``, but grows only while the average descends, and hardly shrinks."""

    _FIELDS = (*DirectionalState._FIELDS, "largest", "old_slope", "new_slope")
    SIGMA = 2.5
    KAPPA = 0.15
    HOLD = 5.0
    FLOOR = 0.9

    def __init__(self, rule, scales, device):
        super().__init__(rule, scales, device)
        zeros = torch.zeros(scales, dtype=torch.float64, device=device)
        self.largest, self.old_slope, self.new_slope = (zeros.clone() for _ in range(3))

    def update_averaged(
        self, slope: Tensor, curvature: Tensor, average: AverageReading, steps: int, may_grow: bool
    ) -> Tensor:
        rule, k = self.rule, self.readings
        accepted = torch.isfinite(slope).all() & torch.isfinite(curvature).all()
        accepted = accepted & torch.isfinite(average.at_old) & torch.isfinite(average.at_new)
        share = steps / rule.interval[0]
        decay = torch.clamp((1 + k) / (10 + k), max=rule.beta) ** share
        self._set(accepted, "slope", torch.lerp(slope, self.slope, decay))
        self._set(accepted, "curvature", torch.lerp(curvature, self.curvature, decay))
        decay_s = torch.clamp((1 + k) / (3 + k), max=0.8) ** share
        self._set(accepted, "old_slope", torch.lerp(average.at_old.expand_as(slope), self.old_slope, decay_s))
        self._set(accepted, "new_slope", torch.lerp(average.at_new.expand_as(slope), self.new_slope, decay_s))
        n, d = self.slope, self.lr * self.curvature
        ratio = n / torch.maximum(d, 1e-9 * n.abs())
        e = torch.where(n > 0, torch.log(self.SIGMA * ratio.clamp(min=1e-9)), -1.0)
        s0, s1 = self.old_slope, self.new_slope
        e_s = torch.log(s0.clamp(min=1e-30) / torch.maximum(s0 - s1, 1e-3 * s0.abs()).clamp(min=1e-30)).clamp(-2, 1)
        e_s = torch.where(s0 > 0, e_s, -2.0)
        grow = torch.minimum(self.KAPPA * e.clamp(max=0.5), 0.2 * e_s.clamp(min=0))
        grow = torch.where(e > 1.2, self.KAPPA * e.clamp(max=3), grow).clamp(min=0)
        if not may_grow:
            grow = torch.zeros_like(grow)
        over = torch.where(n > 0, torch.log(self.HOLD * ratio.clamp(min=1e-9)), -1.0).clamp(-1, 0)
        moved = self.lr * torch.exp(share * (grow + self.KAPPA * over))
        moved = torch.maximum(moved, self.FLOOR * self.largest)
        change = (moved / self.lr).log().abs().max()
        self.change = torch.where(accepted, change, self.change)
        self._set(accepted, "lr", moved)
        self.largest = torch.maximum(self.largest, self.lr)
        self.readings = self.readings + accepted
        return accepted

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def step_direction_(direction, before, after, keep, lr):
    sums = torch.zeros(3, dtype=torch.float64)
    for u, b, a, k in zip(direction, before, after, keep):
        u.copy_((b * k - a) / lr)
        w = u.double()
        sums[0] += (w * w).sum()
        sums[1] += b.double().square().sum()
    return sums


def move_(parameters, start, direction, distance):
    h = float(distance)
    for p, s, u in zip(parameters, start, direction):
        torch.add(s, u, alpha=h, out=p)

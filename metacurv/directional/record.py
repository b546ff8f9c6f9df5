"""What one reading of the directional rule found, for ``history`` and ``on_update``."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DirectionalRecord:
    """One reading. Lists have an entry for each scale: one, or with ``per_group=True`` one a parameter group.

    Attributes:
        step: optimizer steps taken before the one that was measured.
        probe_loss: loss of the probe batch before the step (with ``average=True``: at the average before it).
        slope: n = g . u, g the gradient on the probe batch and u the optimizer's step for a rate of 1.
        curvature: d = u . G u, of the Gauss-Newton matrix.
        lr: the rate from the next step on, without the factors of a scheduler and of the horizon.
        ratio: lr d / n of this reading alone; 2 is the edge beyond which the step makes no progress on a quadratic.
        interval: steps to the next reading.
        accepted: False where a number was not finite; the reading then changed nothing.
    """

    step: int
    probe_loss: float
    slope: list[float]
    curvature: list[float]
    lr: list[float]
    ratio: list[float]
    interval: int
    accepted: bool

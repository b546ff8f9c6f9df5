"""One event of the directional rule: what was measured, and the learning rate that came of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class DirectionalRecord:
    """One event: a reading of slope and curvature, the end of a race, a look at the noise, or one of the guard.

    Each list of rates, slopes, curvatures and ratios has one entry per scale. A scale is a set of parameter groups that share
    a rate: there is one, or with ``per_group=True`` one for each parameter group.

    Attributes:
        step: optimizer steps taken before the one that was measured, or before the event.
        event: "reading", "race", "settling" for a look at the noise, "guard" for one of the guard, or "went back" for one
            that took the training back.
        probe_loss: loss of the probe batch before the step, or of the batches that the judge looks at.
        lr: the rate from the next step on, without the factors of a scheduler and of the horizon.
        effective_lrs: the learning rate of every parameter group at the step that followed, with these factors.
        slope: n = g . u, with g the gradient on the probe batch and u the base optimizer's step at a rate of 1; in units of the
            loss. Empty unless the event is a reading.
        curvature: d = u . G u, with G the Gauss-Newton matrix; in units of the loss. Empty unless the event is a reading.
        ratio: lr d / n of this reading alone, at the rate that was measured. On a quadratic the best rate has ratio 1, and
            beyond ratio 2 the step makes no progress. Empty unless the event is a reading.
        candidates: the rates that raced to the end, and the loss of each. Empty unless the event is a race.
        accepted: False where a number of a reading was not finite; it then changed nothing.
        noise: the loss of the iterate less that of the average, on the batches of a look. nan unless the event is "settling".
    """

    step: int
    event: Literal["reading", "race", "settling", "guard", "went back"]
    probe_loss: float
    lr: list[float]
    effective_lrs: list[float]
    slope: list[float]
    curvature: list[float]
    ratio: list[float]
    candidates: list[tuple[float, float]]
    accepted: bool
    noise: float = math.nan

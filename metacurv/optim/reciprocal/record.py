"""The record of one reading of the reciprocal rule, for ``on_update`` callbacks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class UpdateRecord:
    """One curvature reading and what the reciprocal rule made of it.

    Attributes:
        step: the number of optimizer steps that were taken before the reading.
        trace: the trace that was read, in units of the loss over those of the parameters squared; with a
            ``DistributedDataParallel`` model it is the mean of all ranks' readings.
        stderr: the standard error of ``trace``; nan with one probe.
        smoothed_trace: the moving average that the rule was given; ``trace`` itself where ``smoothing`` is 0.
        scale: the factor on every group's lr from now on, in [2^-40, 1].
        effective_lrs: lr times scale of every parameter group.
        accepted: False where the reading was not finite; it then changed nothing.
    """

    step: int
    trace: float
    stderr: float
    smoothed_trace: float
    scale: float
    effective_lrs: list[float]
    accepted: bool

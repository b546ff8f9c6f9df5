"""The arithmetic by which one reading moves the rates of the directional rule, derived in ``docs/develop/research-log.md``."""

from __future__ import annotations

import torch
from torch import Tensor

MIN_LR, MAX_LR = 2.0**-60, 2.0**60
_TINY = 1e-9  # a curvature below this part of the slope counts as none
_MOST_GROWTH, _MOST_SHRINKING = 3.0, 1.0  # bounds on what a reading may ask for, in log units
_BRAKED_GROWTH = 0.5  # the bound on growth once a rate was found too large
_LOSS_DECAY = 0.7  # decay of the moving average of the probe batches' losses
_MOST_LOST = 0.25  # part of the progress in the loss that may be lost: more means a rate that undoes the training
_PROGRESS = 0.1  # part of the first loss that must be gained before a loss can count as undoing it


def take_in_(
    scales: Tensor,
    shared: Tensor,
    reading: Tensor,
    *,
    sigma: float,
    kappa: float,
    beta: float,
    searching: bool,
) -> None:
    """Moves the rates by one reading: while ``searching`` towards sigma n / d, and to half where the loss has risen far.

    Nothing waits for the device.

    Args:
        scales: [4, S], float64: the rate, the moving averages of n and of d, and 1 where the rate was too large once.
        shared: [6], float64: the first probe loss, its moving average and the least of that; readings so far; the largest
            |change of log rate| by this reading; and 1 where every number of it was finite.
        reading: [1 + 2 S], float64: loss, S slopes, S curvatures.
        sigma: the ratio rate d / n that the rule seeks.
        kappa: gain.
        beta: decay of the averages.
        searching: true where slope and curvature move the rate.
    """
    n_scales = scales.shape[1]
    lr, slope, curvature, braked = scales.clone().unbind()
    loss, read_slope, read_curvature = (
        reading[0],
        reading[1 : 1 + n_scales],
        reading[1 + n_scales :],
    )
    finite = torch.isfinite(reading).all()
    # [S]: a scale with slope and curvature 0 had no parameter that was stepped.
    moved = finite & ((read_slope != 0) | (read_curvature != 0))
    readings = shared[3].clone()
    before = lr
    if searching:
        decay = torch.clamp((1 + readings) / (10 + readings), max=beta)
        slope = torch.where(moved, _mixed(slope, read_slope, decay), slope)
        curvature = torch.where(moved, _mixed(curvature, read_curvature, decay), curvature)
        # How far log lr is below the one sought. Growth is nearly free until the rate was too large for the first time.
        error = torch.log(sigma * slope / torch.maximum(lr * curvature, _TINY * slope))
        # Where lr d overflows beside sigma n, there is no telling but that the rate is large.
        error = torch.where((slope > 0) & ~error.isnan(), error, -_MOST_SHRINKING)
        error = error.clamp(-_MOST_SHRINKING, _MOST_GROWTH)
        braked = torch.where((error < 0) & moved, 1.0, braked)
        error = torch.where(braked > 0, error.clamp(max=_BRAKED_GROWTH), error)
        lr = torch.where(moved, lr * torch.exp(kappa * error), lr)
        readings = readings + moved.any()

    # A quarter of the progress is lost: a ratio, so that the loss may have any unit.
    first, smooth, least = shared[:3].clone().unbind()
    bound = least + _MOST_LOST * (first - least)
    risen = ~(loss <= bound) & (first - least > _PROGRESS * first.abs())
    smooth = torch.where(torch.isfinite(loss), _mixed(smooth, loss, _LOSS_DECAY), smooth)
    least = torch.minimum(least, smooth)

    lr = torch.where(risen, lr / 2, lr).clamp(MIN_LR, MAX_LR)
    braked = torch.where(risen, 1.0, braked)
    change = (lr / before).log().abs().max()
    scales.copy_(torch.stack([lr, slope, curvature, braked]))
    shared.copy_(torch.stack([first, smooth, least, readings, change, finite.to(torch.float64)]))


def _mixed(average: Tensor, new: Tensor, decay: float | Tensor) -> Tensor:
    """Returns the next average. ``torch.lerp`` would not do: its rounding depends on the machine."""
    return decay * average + (1 - decay) * new

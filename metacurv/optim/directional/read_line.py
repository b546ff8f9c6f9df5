"""Measures slope and curvature of one batch along a step's line, from the model's outputs on both sides of its start."""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv.optim.directional.line_curvature import LineReading, read_lines
from metacurv.optim.directional.probe_model import ProbeBatch
from metacurv.optim.directional.step_line import StepLine


def read_line(line: StepLine, batch: ProbeBatch, weights: Tensor) -> LineReading:
    """Takes a reading at the start of the step. It leaves the parameters somewhere on the line.

    Args:
        line: the step, of S scales.
        batch: the probe batch to measure on.
        weights: [S], the relative sizes of the scales' steps.

    Raises:
        NotTwiceDifferentiableError: ``loss_fn`` has no second derivative in the model's output.
        RuntimeError: another rank could not measure.
        ValueError: ranks hold different rates.
    """
    like = torch.empty(1 + 2 * len(line.reach), dtype=torch.float64, device=line.reach.device)
    return LineReading(batch.ranks.mean(lambda: _numbers(line, batch, weights), like))


def _numbers(line: StepLine, batch: ProbeBatch, weights: Tensor) -> Tensor:
    """Returns the reading of this rank."""
    line.go_before()
    sides = []
    for scale in range(len(line.reach)):
        outputs = []
        for sign in (1, -1):
            line.move(scale, sign)
            outputs.append(batch.output())
        line.go_before(scale)
        sides.append(outputs)
    inverse = torch.where(line.reach > 0, 0.5 / line.reach, 0.0)
    tangents = [
        [_difference(plus, minus) * by.to(plus.dtype) for plus, minus in zip(*outputs, strict=True)]
        for by, outputs in zip(inverse, sides, strict=True)
    ]
    centre = [(plus + minus) / 2 for plus, minus in zip(*sides[0], strict=True)]
    with batch.loss_quiet():
        return read_lines(batch.loss, centre, tangents, weights).numbers


def _difference(plus: Tensor, minus: Tensor) -> Tensor:
    """Returns plus - minus, and 0 where both are equal, also where both are infinite as masked logits are."""
    return torch.where(plus == minus, 0.0, plus - minus)

"""One batch's slope and curvature along the line of a step, from the model's outputs on both sides of where it began."""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv.directional.probe_model import ProbeBatch
from metacurv.directional.step_line import StepLine
from metacurv.estimators.line_reading import LineReading, read_lines


def read_line(line: StepLine, batch: ProbeBatch, weights: Tensor) -> LineReading:
    """A reading where the step began. Leaves the parameters somewhere on the line.

    Args:
        line: of S scales.
        batch: what to measure on.
        weights: [S], of the scales' steps beside each other.

    Raises:
        NotTwiceDifferentiableError: ``loss_fn`` has no second derivative in the model's output.
    """
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
        reading = read_lines(batch.loss, centre, tangents, weights)
    return LineReading(batch.ranks.mean(reading.numbers))


def _difference(plus: Tensor, minus: Tensor) -> Tensor:
    """0 where both are the same, also where that is infinity: masked logits."""
    return torch.where(plus == minus, 0.0, plus - minus)

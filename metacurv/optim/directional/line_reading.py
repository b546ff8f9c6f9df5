"""A reading: slope and curvature of the loss along a step, from the model's outputs on both sides of its start.

    slope n = grad L . J u,   curvature d = J u . H_out J u          u the direction, J the Jacobian of the model

J u is the difference of outputs over the distance, so no pass goes backward through the model; H_out J u is a double backward
through the loss alone. d is the curvature of the generalized Gauss-Newton matrix (Schraudolph 2002).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.problem.elsewhere import elsewhere
from metacurv.estimators.problem.errors import explain_differentiation_errors
from metacurv.optim.directional.output_loss import Leaves, OutputLoss
from metacurv.optim.directional.probe_model import ProbeBatch
from metacurv.optim.directional.step_line import StepLine


@dataclass(frozen=True)
class LineReading:
    """Loss, slopes and curvatures of one batch along S lines, in ``numbers``: [1 + 2 S] float64 on the outputs' device.

    ``curvature[s]`` is u_s . G (sum over r of w_r u_r) / w_s, with w the weights: u . G u for a single line.
    """

    numbers: Tensor

    @property
    def loss(self) -> Tensor:
        """The loss, 0-dim."""
        return self.numbers[0]

    @property
    def slope(self) -> Tensor:
        """The slopes along the lines, [S]."""
        return self.numbers[1 : 1 + len(self.numbers) // 2]

    @property
    def curvature(self) -> Tensor:
        """The curvatures along the lines, [S]."""
        return self.numbers[1 + len(self.numbers) // 2 :]


def read_line(line: StepLine, batch: ProbeBatch, weights: Tensor) -> LineReading:
    """Takes a reading at the start of a step of S scales, the mean of all ranks; leaves the parameters somewhere on the line.

    Args:
        line: the step.
        batch: the probe batch to measure on.
        weights: [S] float64, > 0, the relative sizes of the scales' steps.

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
    # Where both sides are equal the difference is 0, also where they are infinite as masked logits are.
    tangents = [
        [
            torch.where(plus == minus, 0.0, plus - minus) * by.to(plus.dtype)
            for plus, minus in zip(*outputs, strict=True)
        ]
        for by, outputs in zip(inverse, sides, strict=True)
    ]
    centre = [(plus + minus) / 2 for plus, minus in zip(*sides[0], strict=True)]
    with batch.loss_quiet():
        return _derivatives(batch.loss, centre, tangents, weights)


def _derivatives(
    loss: OutputLoss, centre: Leaves, tangents: Sequence[Leaves], weights: Tensor
) -> Tensor:
    """Returns the numbers of a reading from the outputs where the lines meet, and their derivatives along each of the lines."""
    several = len(tangents) > 1
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in centre]
        value = loss.at(leaves)
        if value.grad_fn is not None:
            check_differentiable([value.grad_fn], leaves, again=lambda: loss.at(elsewhere(leaves)))
        gradients = _gradients(value, leaves, create_graph=True)
        slope = torch.stack([_dot(gradients, tangent) for tangent in tangents])
        summed = tangents[0]
        if several:
            summed = [
                sum(
                    (w.to(x.dtype) * x for w, x in zip(weights, parts, strict=True)),
                    torch.zeros_like(parts[0]),
                )
                for parts in zip(*tangents, strict=True)
            ]
        along = _dot(gradients, summed)
        products = (
            _gradients(along, leaves)
            if along.requires_grad
            else [torch.zeros_like(x) for x in leaves]
        )
    curvature = torch.stack([_dot(products, tangent) for tangent in tangents])
    if several:
        curvature = curvature / weights
    loss_of_batch = value.detach().to(torch.float64).reshape(1)
    return torch.cat([loss_of_batch, slope.detach(), curvature])


def _gradients(value: Tensor, leaves: Leaves, *, create_graph: bool = False) -> Leaves:
    order = "first" if create_graph else "second"
    with explain_differentiation_errors(f"the {order} derivative of loss_fn in the model's output"):
        return list(
            torch.autograd.grad(
                value, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )
        )


def _dot(a: Leaves, b: Leaves) -> Tensor:
    parts = [(x * y).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

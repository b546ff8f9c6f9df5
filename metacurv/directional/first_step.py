"""The first step, from which the rule gets its first rate: nothing is known before it, and nothing may be lost by it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from metacurv.base_step import step_base_at
from metacurv.directional.base_state import BaseState
from metacurv.directional.group_rates import GroupRates
from metacurv.directional.probe_model import ProbeBatch
from metacurv.directional.read_line import read_line
from metacurv.directional.step_line import StepLine
from metacurv.directional.stepped import keep
from metacurv.estimators.line_reading import LineReading
from metacurv.rules.directional_state import DirectionalState

_BATCHES = 4  # whose mean slope and curvature give the first rate
_TRIES = 10  # rounds of them, while the slope is not positive
_HALVINGS = 40  # of a first rate that raises the loss
_LONG = 0.25  # beside the parameters, for a step in half precision
_LONGER_STEPS = 4


class FirstStep:
    """Steps the base at a rate of 1, puts that back, and takes the part of it that slope and curvature allow.

    Args:
        base, rates: the optimizer and its groups' rates.
        draw: gives a probe batch.
        backend: see ``metacurv.ops``.
    """

    def __init__(
        self,
        base: Optimizer,
        rates: GroupRates,
        draw: Callable[[], ProbeBatch],
        backend: str,
    ) -> None:
        self._base, self._rates, self._draw, self._backend = base, rates, draw, backend

    def take(
        self, moving: Sequence[Sequence[Tensor]], state: DirectionalState, factor: float
    ) -> LineReading | None:
        """Steps, and sets the first rate in ``state``.

        Args:
            moving: the parameters with a gradient under each scale; not all empty.
            state: before its first rate.
            factor: on the rate of this step, of the horizon.

        Returns:
            The reading, or None where the gradients are zeros: there is then nothing to find a rate from, and no step.

        Raises:
            ValueError: gradients or losses are not finite, or the loss has no curvature along the step.
            NotTwiceDifferentiableError: the loss has no second derivative.
            After any error parameters and base are as they were.
        """
        batches = [self._draw() for _ in range(_BATCHES)]
        before = BaseState(self._base)
        line = StepLine(moving, self._backend)
        try:
            has_gradient = [any(map(_is_not_zero, scale)) for scale in moving]
            if not any(has_gradient):
                step_base_at(self._base, self._rates.first_shares())
                line.go_before()
                return None
            self._step_far_enough(line, before, has_gradient)
            reading = self._reading(line, batches)
            state.begin(reading.loss, reading.slope.abs(), reading.curvature)
            self._halve_while_it_rises(line, batches, reading.loss, state)
            self._go(line, state, factor)
        except BaseException:
            line.go_before()
            before.restore()
            raise
        return reading

    def _step_far_enough(
        self, line: StepLine, before: BaseState, has_gradient: Sequence[bool]
    ) -> None:
        """At a rate of 1, or at one so much larger that rounding the parameters takes few digits from the step."""
        digits = 1024 * max(torch.finfo(dtype).eps for dtype in line.dtypes)
        enough = min(digits, _LONG)
        # A power of two; some optimizers convert the rate to the parameters' dtype.
        most = min(2.0 ** (math.frexp(torch.finfo(dtype).max)[1] - 2) for dtype in line.dtypes)
        shares, scales = self._rates.first_shares(), self._rates.scale_of_group
        rates = [1.0] * len(line.length)
        for attempt in range(_LONGER_STEPS + 1):
            if attempt:
                line.go_before()
                before.restore()
            at = [share * rates[scale] for share, scale in zip(shares, scales, strict=True)]
            step_base_at(self._base, at)
            line.stepped(keep(self._base, self._rates, at), rates)
            if not bool(line.is_finite):
                raise ValueError(
                    "gradients must be finite at the first step, got a step that is not"
                )
            longer = [
                min(rate * _lengthening(rate * length), most)
                if moves and rate * length < enough
                else rate
                for rate, length, moves in zip(
                    rates, line.length.tolist(), has_gradient, strict=True
                )
            ]
            if longer == rates:
                return
            rates = longer

    def _reading(self, line: StepLine, batches: list[ProbeBatch]) -> LineReading:
        """The mean over batches, other ones while the slope says that the step goes uphill."""
        weights = torch.ones_like(line.reach)
        for attempt in range(_TRIES):
            if attempt:
                batches[:] = [self._draw() for _ in range(_BATCHES)]
            readings = [read_line(line, batch, weights) for batch in batches]
            mean = LineReading(torch.stack([r.numbers for r in readings]).mean(0))
            still = line.reach == 0  # nothing under this scale has a gradient
            downhill = (mean.slope > 0) & (mean.curvature > 0)
            if bool((downhill | still).all() & torch.isfinite(mean.loss)):
                return mean
        if not bool(torch.isfinite(mean.numbers).all()):
            raise ValueError(
                f"loss_fn and the gradients must be finite at the first step, got a probe loss of {float(mean.loss)} and "
                f"slopes {mean.slope.tolist()} along the step"
            )
        if not bool(((mean.curvature > 0) | still).all()):
            raise ValueError(
                "loss_fn must be curved in the model's output (twice differentiable, and not linear in pieces as L1 and hinge "
                f"losses are) and the model must answer to the step, got curvatures {mean.curvature.tolist()} along it"
            )
        return mean

    def _halve_while_it_rises(
        self,
        line: StepLine,
        batches: list[ProbeBatch],
        before: Tensor,
        state: DirectionalState,
    ) -> None:
        """Judged at the rate itself, wherever a scheduler begins: of a step too short to be seen, rounding would decide."""
        shares, scales = self._rates.first_shares(), self._rates.scale_of_group
        for _ in range(_HALVINGS):
            lr = state.lr.tolist()
            rates = [lr[scale] * share for scale, share in zip(scales, shares, strict=True)]
            line.step_to(keep(self._base, self._rates, rates, shares), lr)
            after = torch.stack([batch.value() for batch in batches]).mean()
            if bool(batches[0].ranks.mean(after) <= before):
                return
            state.lr = state.lr / 2

    def _go(self, line: StepLine, state: DirectionalState, factor: float) -> None:
        """To where the step at the rate that was found leads, times what a scheduler and the horizon make of it."""
        largest = [float(share) for share in self._rates.largest(self._rates.shares())]
        lr = [rate * part * factor for rate, part in zip(state.lr.tolist(), largest, strict=True)]
        shares, scales = self._rates.first_shares(), self._rates.scale_of_group
        rates = [lr[scale] * share for scale, share in zip(scales, shares, strict=True)]
        line.step_to(keep(self._base, self._rates, rates, shares), lr)


def _lengthening(length: float) -> float:
    """A power of two, which rounds nothing, that makes the step about as long as the parameters."""
    return 2.0 ** (round(-math.log2(length)) if length > 0 else 24)


def _is_not_zero(parameter: Tensor) -> bool:
    gradient = parameter.grad
    assert gradient is not None
    values = gradient._values() if gradient.is_sparse else gradient
    return bool(values.count_nonzero())

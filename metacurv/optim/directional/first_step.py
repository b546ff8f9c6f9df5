"""The first step of the directional rule, which finds the first learning rate and takes itself back if anything fails."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from metacurv.optim.base_step import has_entries, step_base_at
from metacurv.optim.directional.base_state import BaseState
from metacurv.optim.directional.early_rate import EarlyRate
from metacurv.optim.directional.group_rates import GroupRates
from metacurv.optim.directional.line_curvature import LineReading
from metacurv.optim.directional.moved_parameters import keep
from metacurv.optim.directional.probe_model import ProbeBatch
from metacurv.optim.directional.read_line import read_line
from metacurv.optim.directional.step_line import StepLine
from metacurv.processes.ranks import call_each

_BATCHES = 4  # probe batches whose mean slope and curvature give the first rate
_TRIES = 10  # rounds of such batches, while the slope is not positive
_HALVINGS = 40  # bound on the halvings of a first rate that raises the loss
_ROUNDING = 2.0**-21  # part of the loss that is no rise: four units in the last place of float32
_LONG = 0.25  # length over the parameters' at which a step in half precision is long enough
_LONGER_STEPS = 4


class FirstStep:
    """Steps the base at a rate of 1, takes that back, and then takes the part of it that slope and curvature give.

    ``changed_entries`` then has the names of those entries of the base's groups that its step changes, and ``before`` the state
    of the base before the step, with these entries of the groups.

    Args:
        base: the base optimizer.
        rates: the learning rates of its groups.
        draw: gives a probe batch.
    """

    def __init__(
        self,
        base: Optimizer,
        rates: GroupRates,
        draw: Callable[[], ProbeBatch],
    ) -> None:
        self._base, self._rates, self._draw = base, rates, draw
        self.changed_entries: frozenset[str] = frozenset()
        self.before: BaseState | None = None

    def take(
        self, moving: Sequence[Sequence[Tensor]], state: EarlyRate, factor: float
    ) -> LineReading | None:
        """Takes the first step, and sets the first rate in ``state``.

        Args:
            moving: the parameters with a gradient under each scale; not all empty.
            state: the early rate, before its first value.
            factor: the horizon's factor on the rate of this step.

        Returns:
            The reading, or None where all gradients are zeros: then there is nothing to find a rate from, and no step is taken.

        Raises:
            ValueError: gradients or losses are not finite, or the loss has no curvature along the step.
            NotTwiceDifferentiableError: the loss has no second derivative. After this error, as after any, parameters and base
                are as they were.
        """
        batches = [self._draw() for _ in range(_BATCHES)]
        one = batches[0]
        before = BaseState(self._base)
        line = StepLine(moving, one.ranks.together(one.computed_in, one.device))
        try:
            has_gradient = [
                bool(scale) and has_entries([p.grad for p in scale if p.grad is not None])
                for scale in moving
            ]
            if not any(has_gradient):
                step_base_at(self._base, self._rates.first_shares())
                line.go_before()
                return None
            self._step_far_enough(line, before, has_gradient)
            self.changed_entries = before.changed_entries()
            reading = self._reading(line, batches)
            state.begin(reading.slope.abs().tolist(), reading.curvature.tolist())
            if sum(lr * n for lr, n in zip(state.lr, reading.slope.tolist(), strict=True)) > 0:
                self._halve_while_it_rises(line, batches, state)
            self._go(line, state, factor)
        except BaseException:
            line.go_before()
            before.restore()
            raise
        before.keep_only(self.changed_entries)
        self.before = before
        return reading

    def _step_far_enough(
        self, line: StepLine, before: BaseState, has_gradient: Sequence[bool]
    ) -> None:
        """Steps the base at a rate of 1, or at a larger one where rounding the parameters would cost many digits."""
        digits = 1024 * max(torch.finfo(dtype).eps for dtype in line.dtypes)
        enough = min(digits, _LONG)
        # The bound is a power of two within the dtype's range, as some optimizers convert the rate to the parameters' dtype.
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
        """Returns the mean reading over batches; draws other batches while the slope says that the step goes uphill."""
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
                "losses are, or NLLLoss after a log-softmax in the model) and the model must answer to the step, got "
                f"curvatures {mean.curvature.tolist()} along it"
            )
        return mean

    def _halve_while_it_rises(
        self, line: StepLine, batches: list[ProbeBatch], state: EarlyRate
    ) -> None:
        """Halves the rate while the step at that rate raises the loss of the batches, on which a small step must lower it.

        The step is judged at the whole rate, not at the part that a scheduler begins with: rounding would decide about a tiny
        step.
        """
        shares, scales = self._rates.first_shares(), self._rates.scale_of_group
        line.go_before()
        before = self._mean(batches)
        most = before + _ROUNDING * before.abs()
        for _ in range(_HALVINGS):
            lr = state.lr
            rates = [lr[scale] * share for scale, share in zip(scales, shares, strict=True)]
            line.step_to(keep(self._base, self._rates, rates, shares), lr)
            if bool(self._mean(batches) <= most):
                return
            state.lr = [rate / 2 for rate in lr]

    @staticmethod
    def _mean(batches: list[ProbeBatch]) -> Tensor:
        """Returns the mean loss of the batches, over all ranks."""
        like = torch.empty((), dtype=torch.float64, device=batches[0].device)
        return batches[0].ranks.mean(
            lambda: torch.stack(call_each(b.value for b in batches)).mean(), like
        )

    def _go(self, line: StepLine, state: EarlyRate, factor: float) -> None:
        """Takes the step at the rate that was found, times the factors of a scheduler and of the horizon."""
        largest = [float(share) for share in self._rates.largest(self._rates.shares())]
        lr = [rate * part * factor for rate, part in zip(state.lr, largest, strict=True)]
        shares, scales = self._rates.first_shares(), self._rates.scale_of_group
        rates = [lr[scale] * share for scale, share in zip(scales, shares, strict=True)]
        line.step_to(keep(self._base, self._rates, rates, shares), lr)


def _lengthening(length: float) -> float:
    """Returns the power of two, which rounds nothing, that makes the step about as long as the parameters."""
    return 2.0 ** (round(-math.log2(length)) if length > 0 else 24)

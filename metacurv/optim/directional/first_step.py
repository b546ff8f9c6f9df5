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
from metacurv.optim.directional.line_reading import LineReading, read_line
from metacurv.optim.directional.probe_model import ProbeBatch
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

    Args:
        base: the base optimizer.
        rates: the learning rates of its groups.
        moving: the parameters with a gradient under each scale; not all empty.
        draw: gives a probe batch.

    Attributes:
        changed_entries: the names of those entries of the base's groups that its step changes, after ``take``.
        before: the state of the base before the step, with these entries of the groups.
    """

    def __init__(
        self,
        base: Optimizer,
        rates: GroupRates,
        moving: Sequence[Sequence[Tensor]],
        draw: Callable[[], ProbeBatch],
    ) -> None:
        self._base, self._rates, self._draw = base, rates, draw
        self._shares = rates.first_shares()
        self._batches = self._drawn()
        one = self._batches[0]
        self.before = BaseState(base)
        self._line = StepLine(moving, one.ranks.together(one.computed_in, one.device))
        self._has_gradient = [
            bool(scale) and has_entries([p.grad for p in scale if p.grad is not None])
            for scale in moving
        ]
        self.changed_entries: frozenset[str] = frozenset()

    def take(self, early: EarlyRate, factor: float) -> LineReading | None:
        """Takes the first step, and sets the first rate in ``early``.

        Args:
            early: the early rate, before its first value.
            factor: the horizon's factor on the rate of this step.

        Returns:
            The reading, or None where all gradients are zeros: then there is nothing to find a rate from, and no step is taken.

        Raises:
            ValueError: gradients or losses are not finite, or the loss has no curvature along the step.
            NotTwiceDifferentiableError: the loss has no second derivative. After this error, as after any, parameters and base
                are as they were.
        """
        line = self._line
        try:
            if not any(self._has_gradient):
                step_base_at(self._base, self._shares)
                line.go_before()
                return None
            self._step_far_enough()
            self.changed_entries = self.before.changed_entries()
            reading = self._reading()
            slope = reading.slope.tolist()
            early.begin(reading.slope.abs().tolist(), reading.curvature.tolist())
            if sum(lr * n for lr, n in zip(early.lr, slope, strict=True)) > 0:
                self._halve_while_it_rises(early)
            # A scheduler may have begun with a part of the rate.
            largest = [float(share) for share in self._rates.largest(self._rates.shares())]
            self._step_to([lr * x * factor for lr, x in zip(early.lr, largest, strict=True)])
        except BaseException:
            line.go_before()
            self.before.restore()
            raise
        self.before.keep_only(self.changed_entries)
        return reading

    def _drawn(self) -> list[ProbeBatch]:
        return [self._draw() for _ in range(_BATCHES)]

    def _step_to(self, lr: Sequence[float]) -> None:
        """Moves the parameters to where the step leads at these rates of the scales."""
        rates = self._rates.of_shares(lr, self._shares)
        self._line.step_to(self._rates.keep(rates, self._shares), lr)

    def _step_far_enough(self) -> None:
        """Steps the base at a rate of 1, or at a larger one where rounding the parameters would cost many digits."""
        line = self._line
        formats = [torch.finfo(dtype) for dtype in line.dtypes]
        enough = min(1024 * max(each.eps for each in formats), _LONG)
        # The bound is a power of two within the dtype's range, as some optimizers convert the rate to the parameters' dtype.
        most = min(2.0 ** (math.frexp(each.max)[1] - 2) for each in formats)
        rates = [1.0] * len(line.length)
        for attempt in range(_LONGER_STEPS + 1):
            if attempt:
                line.go_before()
                self.before.restore()
            of_groups = self._rates.of_shares(rates, self._shares)
            step_base_at(self._base, of_groups)
            line.stepped(self._rates.keep(of_groups), rates)
            if not bool(line.is_finite):
                raise ValueError(
                    "gradients must be finite at the first step, got a step that is not"
                )
            lengths = line.length.tolist()
            longer = [
                min(rate * _lengthening(rate * length), most)
                if moves and rate * length < enough
                else rate
                for rate, length, moves in zip(rates, lengths, self._has_gradient, strict=True)
            ]
            if longer == rates:
                return
            rates = longer

    def _reading(self) -> LineReading:
        """Returns the mean reading over batches; draws other batches while the slope says that the step goes uphill."""
        line = self._line
        weights = torch.ones_like(line.reach)
        still = line.reach == 0  # nothing under this scale has a gradient
        for attempt in range(_TRIES):
            if attempt:
                self._batches = self._drawn()
            readings = [read_line(line, batch, weights) for batch in self._batches]
            mean = LineReading(torch.stack([r.numbers for r in readings]).mean(0))
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

    def _halve_while_it_rises(self, early: EarlyRate) -> None:
        """Halves the rate while the step at that rate raises the loss of the batches, on which a small step must lower it.

        The step is judged at the whole rate, not at the part that a scheduler begins with: rounding would decide about a tiny
        step.
        """
        self._line.go_before()
        before = self._mean_loss()
        most = before + _ROUNDING * before.abs()
        for _ in range(_HALVINGS):
            self._step_to(early.lr)
            if bool(self._mean_loss() <= most):
                return
            early.lr = [rate / 2 for rate in early.lr]

    def _mean_loss(self) -> Tensor:
        """Returns the mean loss of the batches, over all ranks."""
        like = torch.empty((), dtype=torch.float64, device=self._batches[0].device)
        return self._batches[0].ranks.mean(
            lambda: torch.stack(call_each(b.value for b in self._batches)).mean(), like
        )


def _lengthening(length: float) -> float:
    """Returns the power of two, which rounds nothing, that makes the step about as long as the parameters."""
    return 2.0 ** (round(-math.log2(length)) if length > 0 else 24)

"""The line that a step of the base goes along, and the model's outputs at points on it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.finite_difference import relative_step


class StepLine:
    """Holds parameters as they were before a step, and afterwards the direction u of  after = keep before - lr u.

    Args:
        scales: the parameters under each scale, those that the base is about to step.
        backend: see ``metacurv.ops``.
    """

    def __init__(self, scales: Sequence[Sequence[Tensor]], backend: str) -> None:
        self._parameters = [[p.detach() for p in scale] for scale in scales]
        self._run = ops.implementation(backend, self._parameters[0][0].device)
        self._before = [[p.clone() for p in scale] for scale in self._parameters]
        self._after: list[list[Tensor]] = []
        self._direction: list[list[Tensor]] = []
        self.reach = torch.empty(0)

    @torch.no_grad()
    def stepped(self, keep: Sequence[Sequence[float]], lrs: Sequence[float | Tensor]) -> None:
        """To be called after the base's step, with 1 - lr decay of each tensor and the rate of each scale.

        Sets ``reach`` [S], float64: the distance along u by which outputs are compared, small beside the parameters.
        """
        self._after = [[p.clone() for p in scale] for scale in self._parameters]
        self._direction = [[torch.empty_like(p) for p in scale] for scale in self._parameters]
        relative = relative_step({p.dtype for scale in self._parameters for p in scale})
        sums = torch.stack(
            [
                self._run.step_direction_(u, before, after, kept, lr)
                for u, before, after, kept, lr in zip(
                    self._direction, self._before, self._after, keep, lrs, strict=True
                )
            ]
        )
        along, size = sums[:, 0], sums[:, 1]
        self.reach = torch.where(
            along > 0, relative * (torch.where(size > 0, size, 1.0) / along).sqrt(), 0.0
        )

    @torch.no_grad()
    def move(self, scale: int, sign: int) -> None:
        """To before + sign reach u for one scale; the others stay where they are."""
        self._run.move_(
            self._parameters[scale],
            self._before[scale],
            self._direction[scale],
            sign * self.reach[scale],
        )

    @torch.no_grad()
    def step_to(self, keep: Sequence[Sequence[float]], lrs: Sequence[Tensor]) -> None:
        """To keep before - lr u, what the base would have come to at rates ``lrs`` [S]."""
        for parameters, before, direction, kept, lr in zip(
            self._parameters, self._before, self._direction, keep, lrs, strict=True
        ):
            for p, b, k in zip(parameters, before, kept, strict=True):
                torch.mul(b, k, out=p)
            self._run.move_(parameters, parameters, direction, -lr)

    @torch.no_grad()
    def go_before(self, scale: int | None = None) -> None:
        """To where the step began."""
        for s, (parameters, before) in enumerate(zip(self._parameters, self._before, strict=True)):
            if scale is None or s == scale:
                torch._foreach_copy_(parameters, before)

    @torch.no_grad()
    def go_after(self) -> None:
        """To where the base's step came."""
        for parameters, after in zip(self._parameters, self._after, strict=True):
            torch._foreach_copy_(parameters, after)

"""The line along which a step of the base optimizer goes, and moves of the parameters to points on it.

Arithmetic is in float32 for half precision, else in the parameters' own dtype, and sums are in float64. Each process moves
its own parts of parameters that are spread, and sums are over all processes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from metacurv.estimators.problem.numerics import relative_step
from metacurv.ops._reference.scalars import scalar
from metacurv.optim.base_step import Rate
from metacurv.optim.directional.copies import copy_all
from metacurv.processes.local_tensors import is_spread, locals_of, sum_over_shards


class StepLine:
    """Holds the parameters as they were before a step, and afterwards the direction u of  after = keep before - lr u.

    Args:
        scales: the parameters under each scale that the base is about to step; not all empty.
        computed_in: dtypes that the model's outputs are computed in, beside those of the parameters.

    Attributes:
        dtypes: those of the parameters.
        is_finite: 0-dim, true where all of u is finite.
        length: |u| over |before| of each scale, [S] float64, 0 where there was no step.
        reach: the distance along u at which outputs are compared, small beside the parameters; as ``length``.
    """

    def __init__(
        self, scales: Sequence[Sequence[Tensor]], computed_in: Iterable[torch.dtype] = ()
    ) -> None:
        parameters = [p for scale in scales for p in scale]
        self.dtypes, self._computed_in = {p.dtype for p in parameters}, set(computed_in)
        device = parameters[0].device
        self._segments = [_Segment(scale) for scale in scales]
        self.length = torch.zeros(len(scales), dtype=torch.float64, device=device)
        self.reach = torch.zeros_like(self.length)
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)

    def stepped(self, keep: Sequence[Sequence[Rate]], lrs: Sequence[Rate]) -> None:
        """Records the base's step; to be called right after it.

        Args:
            keep: 1 - lr decay of each tensor.
            lrs: the rate of each scale.
        """
        zero = torch.zeros_like(self.length[0])
        nothing = zero, zero, torch.ones_like(self.is_finite)
        found = [
            segment.stepped(factors, lr) if segment.parameters else nothing
            for segment, factors, lr in zip(self._segments, keep, lrs, strict=True)
        ]
        along, size, is_finite = (torch.stack(each) for each in zip(*found, strict=True))
        self.is_finite = is_finite.all()
        self.length = (along / torch.where(size > 0, size, 1.0)).sqrt()
        dtypes = self.dtypes | self._computed_in
        self.reach = torch.where(along > 0, relative_step(dtypes) / self.length, 0.0)

    def move(self, scale: int, sign: int) -> None:
        """Moves the parameters of one scale to before + sign reach u; the others stay where they are."""
        segment = self._segments[scale]
        if segment.parameters:
            place = torch._foreach_mul(segment.direction, sign * self.reach[scale])
            torch._foreach_add_(place, segment.before)
            copy_all(segment.parameters, place)

    def step_to(self, keep: Sequence[Sequence[Rate]], lrs: Sequence[float]) -> None:
        """Moves the parameters to keep before - lr u, where the base would have come to at rates ``lrs`` [S]."""
        for segment, factors, lr in zip(self._segments, keep, lrs, strict=True):
            if segment.parameters:
                place = segment.kept(factors)
                torch._foreach_sub_(place, segment.direction, alpha=lr)
                copy_all(segment.parameters, place)

    def go_before(self, scale: int | None = None) -> None:
        """Moves the parameters back to where the step began, those of ``scale`` or all."""
        for segment in self._segments if scale is None else [self._segments[scale]]:
            copy_all(segment.parameters, segment.before)

    def go_after(self) -> None:
        """Moves the parameters to where the base's step led."""
        for segment in self._segments:
            copy_all(segment.parameters, segment.after)


class _Segment:
    """The part of the line under one scale."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._whole = parameters
        self.parameters = [p.detach() for p in locals_of(parameters)]
        self.before = [p.clone() for p in self.parameters]
        self.after: list[Tensor] = []
        self.direction: list[Tensor] = []

    def stepped(self, keep: Sequence[Rate], lr: Rate) -> tuple[Tensor, Tensor, Tensor]:
        """Computes u, and returns |u|^2, |before|^2 and whether all of u is finite, each 0-dim."""
        self.after = [p.clone() for p in self.parameters]
        self.direction = self.kept(keep)
        torch._foreach_sub_(self.direction, self.after)
        # By a tensor, as on CUDA torch divides by a number by multiplying with its reciprocal.
        torch._foreach_div_(self.direction, scalar(lr, torch.float64, self.after[0].device))
        finite = torch.stack([torch.isfinite(u).all() for u in self.direction])
        if not any(map(is_spread, self._whole)):
            return _square(self.direction), _square(self.before), finite.all()
        parts = [
            torch.stack([_square([u]), _square([b]), (~is_finite).double()])
            for u, b, is_finite in zip(self.direction, self.before, finite, strict=True)
        ]
        along, size, infinite = sum_over_shards(parts, self._whole)
        return along, size, infinite == 0

    def kept(self, keep: Sequence[Rate]) -> list[Tensor]:
        """Returns keep before, in the dtype of the arithmetic."""
        wide = [b.to(torch.promote_types(b.dtype, torch.float32)) for b in self.before]
        return [x * k for x, k in zip(wide, keep, strict=True)]


def _square(tensors: list[Tensor]) -> Tensor:
    """Returns the sum of all squares, 0-dim float64."""
    return torch.stack(torch._foreach_norm(tensors, dtype=torch.float64)).square().sum()

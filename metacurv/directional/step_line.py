"""The line along which a step of the base optimizer goes, and moves of the parameters to points on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv import ops
from metacurv.base_step import Rate
from metacurv.estimators.finite_difference import relative_step


class StepLine:
    """Holds the parameters as they were before a step, and afterwards the direction u of  after = keep before - lr u.

    Args:
        scales: the parameters under each scale that the base is about to step; not all empty.
        backend: see ``metacurv.ops``.
    """

    def __init__(self, scales: Sequence[Sequence[Tensor]], backend: str) -> None:
        device = next(p.device for scale in scales for p in scale)
        self._device = device
        self._run = ops.implementation(backend, device)
        self._segments = [_Segment(scale) for scale in scales]
        self.length = torch.zeros(len(scales), dtype=torch.float64, device=device)
        self.reach = torch.zeros_like(self.length)
        self.is_finite = torch.ones((), dtype=torch.bool, device=device)

    def stepped(self, keep: Sequence[Sequence[Rate]], lrs: Sequence[Rate]) -> None:
        """Records the base's step; to be called right after it.

        It sets ``is_finite``, 0-dim, true where all of u is finite; ``length`` [S], float64: |u| over |before|; and ``reach``
        [S],
        float64: the distance along u at which outputs are compared, small beside the parameters. ``length`` and ``reach`` are 0
            where
        there was no step.

        Args:
            keep: 1 - lr decay of each tensor.
            lrs: the rate of each scale.
        """
        sums = torch.stack(
            [
                segment.stepped(self._run, factors, lr)
                if segment
                else torch.zeros(3, dtype=torch.float64, device=self._device)
                for segment, factors, lr in zip(self._segments, keep, lrs, strict=True)
            ]
        )
        along, size = sums[:, 0], sums[:, 1]
        self.is_finite = (sums[:, 2] == 0).all()
        self.length = (along / torch.where(size > 0, size, 1.0)).sqrt()
        self.reach = torch.where(along > 0, relative_step(self.dtypes) / self.length, 0.0)

    @property
    def dtypes(self) -> set[torch.dtype]:
        """The dtypes of the parameters."""
        return {p.dtype for segment in self._segments for p in segment.parameters}

    def move(self, scale: int, sign: int) -> None:
        """Moves the parameters of one scale to before + sign reach u; the others stay where they are."""
        segment = self._segments[scale]
        if segment:
            segment.move(self._run, sign * self.reach[scale])

    def step_to(self, keep: Sequence[Sequence[Rate]], lrs: Sequence[float]) -> None:
        """Moves the parameters to keep before - lr u, where the base would have come to at rates ``lrs`` [S]."""
        for segment, factors, lr in zip(self._segments, keep, lrs, strict=True):
            if segment:
                segment.step_to(self._run, factors, lr)

    def go_before(self, scale: int | None = None) -> None:
        """Moves the parameters back to where the step began, those of ``scale`` or all."""
        for s, segment in enumerate(self._segments):
            if segment and (scale is None or s == scale):
                segment.go_to(segment.before)

    def go_after(self) -> None:
        """Moves the parameters to where the base's step led."""
        for segment in self._segments:
            if segment:
                segment.go_to(segment.after)


class _Segment:
    """The part of the line under one scale; false where it has no parameters."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = [p.detach() for p in parameters]
        self.before = [p.clone() for p in self.parameters]
        self.after: list[Tensor] = []
        self._direction: list[Tensor] = []

    def __bool__(self) -> bool:
        return bool(self.parameters)

    def stepped(self, run: Any, keep: Sequence[Rate], lr: Rate) -> Tensor:
        """Computes u and returns the sums of ``step_direction_``, [3]."""
        self.after = [p.clone() for p in self.parameters]
        self._direction = [torch.empty_like(p) for p in self.parameters]
        # On a GPU factors may be tensors, so that nothing waits for them; the op takes numbers.
        start = [
            b * k.to(b.dtype) if isinstance(k, Tensor) else b
            for b, k in zip(self.before, keep, strict=True)
        ]
        factors = [1.0 if isinstance(k, Tensor) else k for k in keep]
        rate = lr.to(torch.float64) if isinstance(lr, Tensor) else lr
        sums: Tensor = run.step_direction_(self._direction, start, self.after, factors, rate)
        return sums

    def move(self, run: Any, distance: Tensor) -> None:
        """Moves the parameters to before + distance u."""
        run.move_(self.parameters, self.before, self._direction, distance)

    def step_to(self, run: Any, keep: Sequence[Rate], lr: float) -> None:
        """Moves the parameters to keep before - lr u."""
        for p, b, k in zip(self.parameters, self.before, keep, strict=True):
            torch.mul(b, k, out=p)
        run.move_(self.parameters, self.parameters, self._direction, -lr)

    def go_to(self, place: list[Tensor]) -> None:
        """Copies ``place`` into the parameters."""
        torch._foreach_copy_(self.parameters, place)

"""The reciprocal rule, which this package started from: lr = lr0 / (1 + alpha max(trace, 0))."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from metacurv import _validate, ops


class ReciprocalRule:
    """Shrinks the learning rate as the trace of the Hessian grows; it never raises it above the base rate.

    Args:
        alpha: strength, finite and >= 0, in units of 1 / trace; 0 leaves the learning rate alone.
        backend: see ``metacurv.ops``.
    """

    name: ClassVar[Literal["reciprocal"]] = "reciprocal"

    def __init__(self, alpha: float, backend: str) -> None:
        self.alpha = _validate.real("alpha", alpha, low=0)
        self.backend = backend

    def update_(self, scale: Tensor, trace: Tensor) -> None:
        """Writes the new scale, in [2^-40, 1], from a trace; both are 0-dim float64 on one device. There is no host sync."""
        run = ops.implementation(self.backend, scale.device)
        run.reciprocal_lr_(scale, trace, self.alpha)

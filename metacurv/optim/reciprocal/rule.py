"""The reciprocal rule, which this package started from, lr = lr0 / (1 + alpha max(trace, 0)), and a smoothing of the trace."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
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
        self.backend = _validate.backend(backend)

    def update_(self, scale: Tensor, trace: Tensor) -> None:
        """Writes the new scale, in [2^-40, 1], from a trace; both are 0-dim float64 on one device. There is no host sync."""
        run = ops.implementation(self.backend, scale.device)
        run.reciprocal_lr_(scale, trace, self.alpha)


class BiasCorrectedEma:
    """Smooths readings x by m <- beta m + (1 - beta) x and m / (1 - beta^n), with n the readings so far, as Adam does.

    The source is Kingma and Ba 2015, "Adam: a method for stochastic optimization", section 3. Readings that are
    not finite change nothing. All arithmetic is on the reading's device, without a host sync.

    Args:
        beta: decay in [0, 1); 0 passes readings through unchanged.
    """

    def __init__(self, beta: float) -> None:
        self.beta = _validate.real("smoothing", beta, low=0, below=1)
        self._mean = torch.zeros((), dtype=torch.float64, device="cpu")
        self._power = torch.ones((), dtype=torch.float64, device="cpu")  # beta^n

    def update(self, reading: Tensor) -> Tensor:
        """Takes in a reading, 0-dim float64, and returns the smoothed one (not finite where ``reading`` is not)."""
        if self.beta == 0:
            return reading
        finite = torch.isfinite(reading)
        mean, power = self._mean.to(reading.device), self._power.to(reading.device)
        new_mean = self.beta * mean + (1 - self.beta) * reading
        self._mean = torch.where(finite, new_mean, mean)
        self._power = torch.where(finite, power * self.beta, power)
        return torch.where(finite, self._mean / (1 - self._power), reading)

    def state(self) -> dict[str, float]:
        """Returns numbers only, for a state dict."""
        return {"mean": float(self._mean), "power": float(self._power)}

    def load(self, state: Any, name: str = "state") -> None:
        """Takes back what ``state`` returned.

        Raises:
            TypeError: a number in ``state``, called ``name`` in the message, is of the wrong type; nothing is changed.
            ValueError: ``state`` has another form, or a number out of range; nothing is changed.
        """
        if not isinstance(state, dict) or not {"mean", "power"} <= state.keys():
            raise ValueError(f"{name} must be a dict with mean and power, got {state!r}")
        mean = _validate.real(f"{name}['mean']", state["mean"], low=-math.inf)
        power = _validate.real(f"{name}['power']", state["power"], low=0, high=1)
        self._mean = torch.tensor(mean, dtype=torch.float64, device="cpu")
        self._power = torch.tensor(power, dtype=torch.float64, device="cpu")

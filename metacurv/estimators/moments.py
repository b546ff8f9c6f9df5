"""Running mean and variance of the samples v . H v, per parameter and in total, kept on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.parameters import NumberedParameter
from metacurv.estimators.trace_estimate import TraceEstimate


@dataclass(frozen=True)
class TraceReading:
    """A finished measurement still on the device; ``estimate()`` brings it to the host.

    ``mean``, ``m2``: float64 [T + 1], for the T parameters named ``curved`` and, last, for their sum. ``names``: all parameters
    in order; those not in ``curved`` have a trace of exactly 0.
    """

    mean: Tensor
    m2: Tensor
    curved: list[str]
    names: list[str]
    n_samples: int
    seed: int

    @property
    def trace(self) -> Tensor:
        """0-dim float64."""
        return self.mean[-1]

    def estimate(self) -> TraceEstimate:
        """Copies to the host: one synchronisation on CUDA."""
        mean, m2 = torch.stack([self.mean, self.m2]).cpu()
        # With one probe the deviation is unknown, 0 / 0; without any curvature it is known to be 0.
        degrees = self.n_samples - 1 if self.curved else 1
        values = mean.tolist()
        errors = (m2 / degrees / self.n_samples).sqrt().tolist()
        value_of = dict(zip(self.curved, values, strict=False))
        error_of = dict(zip(self.curved, errors, strict=False))
        return TraceEstimate(
            value=values[-1],
            stderr=errors[-1],
            n_samples=self.n_samples,
            per_parameter={name: value_of.get(name, 0.0) for name in self.names},
            per_parameter_stderr={name: error_of.get(name, 0.0) for name in self.names},
            method="hutchinson",
            kind="hessian",
            seed=self.seed,
        )


class Moments:
    """Welford's running mean and M2 for ``curved`` parameters and their sum (Welford 1962)."""

    def __init__(self, curved: Sequence[NumberedParameter], device: torch.device) -> None:
        self.curved = list(curved)
        self.mean = torch.zeros(len(self.curved) + 1, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, samples: Tensor) -> None:
        """samples: float64 [T]; what ``hutchinson_accumulate_`` does, for samples that are already sums."""
        samples = torch.cat([samples, samples.sum().view(1)])
        self.count.add_(1)
        delta = samples - self.mean
        self.mean.add_(delta / self.count)
        self.m2.add_(delta * (samples - self.mean))

    def reading(
        self, parameters: Sequence[NumberedParameter], *, n_samples: int, seed: int
    ) -> TraceReading:
        """The measurement so far."""
        return TraceReading(
            mean=self.mean,
            m2=self.m2,
            curved=[p.name for p in self.curved],
            names=[p.name for p in parameters],
            n_samples=n_samples,
            seed=seed,
        )

"""Running mean and variance of samples, and a finished measurement, both on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.problem.results import TraceEstimate


class RunningMoments:
    """Merges batches of samples without keeping them (Chan, Golub, LeVeque 1983, eq. 2.1).

    ``count``: the number of samples so far. ``mean``, ``m2``: float64 [D], once there is one.
    """

    count = 0
    mean: Tensor
    m2: Tensor

    def add(self, samples: Tensor) -> None:
        """Merges a batch of samples, float64 [m, D]."""
        mean = samples.mean(0)
        m2 = (samples - mean).square().sum(0)
        m, n = len(samples), self.count + len(samples)
        if self.count:
            delta = mean - self.mean
            self.m2 += m2 + delta.square() * (self.count * m / n)
            self.mean += delta * (m / n)
        else:  # most readings end with their first batch
            self.mean, self.m2 = mean, m2
        self.count = n


@dataclass(frozen=True)
class TraceReading:
    """A finished measurement still on the device; ``estimate()`` brings it to the host.

    ``mean``, ``m2``: float64 [T + 1], for the T parameters named ``curved`` and, last, for their sum. ``names``: all parameters
    in order; those not in ``curved`` have a trace of exactly 0. ``n_samples``: 0 where the trace is exact. ``why``: the reason
    for this method.
    """

    mean: Tensor
    m2: Tensor
    curved: list[str]
    names: list[str]
    n_samples: int
    seed: int
    method: str = "hutchinson"
    why: str = ""

    @property
    def trace(self) -> Tensor:
        """The total trace, 0-dim float64."""
        return self.mean[-1]

    def estimate(self) -> TraceEstimate:
        """Copies the measurement to the host, with one synchronisation on CUDA."""
        mean, m2 = torch.stack([self.mean, self.m2]).cpu()
        values = mean.tolist()
        if self.n_samples and self.curved:
            # With one probe the deviation is unknown: 0 / 0 gives nan.
            errors = (m2 / (self.n_samples - 1) / self.n_samples).sqrt().tolist()
        else:  # exact, or without any curvature
            errors = [0.0] * len(values)
        value_of = dict(zip(self.curved, values, strict=False))
        error_of = dict(zip(self.curved, errors, strict=False))
        return TraceEstimate(
            value=values[-1],
            stderr=errors[-1],
            n_samples=self.n_samples,
            per_parameter={name: value_of.get(name, 0.0) for name in self.names},
            per_parameter_stderr={name: error_of.get(name, 0.0) for name in self.names},
            method=self.method,
            kind="hessian",
            seed=self.seed,
            why=self.why,
        )

"""Running mean and variance of samples, and a finished measurement, both on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.problem.results import TraceEstimate


class RunningMoments:
    """Merges batches of samples without keeping them (Chan, Golub, LeVeque 1983, eq. 2.1).

    ``count``: the number of samples so far. ``mean``, ``m2``: float64 [D] or [rows, D], once there is one.
    """

    count = 0
    mean: Tensor
    m2: Tensor

    def add(self, samples: Tensor) -> None:
        """Merges a batch of samples, float64 [m, D] or [m, rows, D]."""
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


class RowMoments:
    """Mean and error of sums whose rows are known one by one: what the examples share, and each example's own part.

    Examples have signs of their own, so the variances of their rows add up: every one of them tells about the error, and a few
    samples suffice for a good one. How the shared row goes with them is not known: its standard error is added to theirs, which
    is the most that it can do.
    """

    def __init__(self) -> None:
        self._rows = RunningMoments()

    @property
    def count(self) -> int:
        """The number of samples."""
        return self._rows.count

    @property
    def mean(self) -> Tensor:
        """The means of the sums, float64 [D]."""
        return self._rows.mean.sum(0)

    def add(self, samples: Tensor) -> None:
        """Merges samples, float64 [m, 1 + examples, D], the shared row first."""
        self._rows.add(samples)

    @property
    def deviation(self) -> Tensor:
        """The standard deviation of one sample's sums, float64 [D]; nan of a single sample."""
        variances = self._rows.m2 / ((self.count - 1) or math.nan)
        return variances[0].sqrt() + variances[1:].sum(0).sqrt()

    @property
    def is_trusted(self) -> bool:
        """True where the error of the last sum has 15 degrees of freedom, so that it is itself known to 18 %.

        The examples' variances are added up with the degrees of freedom that Welch 1947 and Satterthwaite 1946 give such a sum,
        each v^2 taken by (n - 1) / (n + 1), the factor of a variance of n normal samples that makes it unbiased.
        """
        if self.count > DEGREES:
            return True
        if self.count < _FEWEST:
            return False
        shared, *own = (self._rows.m2[:, -1] / (self.count - 1)).tolist()
        return self.degrees >= DEGREES and 16 * shared <= sum(own)

    @property
    def degrees(self) -> float:
        """The degrees of freedom of the last sum's error, by the examples' rows; 0 where these have no scatter."""
        if len(self._rows.m2) == 1:
            return self.count - 1
        own = (self._rows.m2[1:, -1] / (self.count - 1)).tolist()
        squares = sum(v * v for v in own)
        return (self.count + 1) * sum(own) ** 2 / squares if squares else 0.0


# A standard error from fewer degrees of freedom is too rough to stop at: its own relative error is 1 / sqrt(2 k), here 18 %.
DEGREES = 15
_FEWEST = 3  # samples: a value from fewer is so rough that to stop by an error relative to it favours large ones


def samples_to_trust(examples: int) -> int:
    """Returns the least number of samples that may give ``DEGREES``, of ``examples`` told apart (1: they are not)."""
    return max(_FEWEST, 1 + math.ceil(2 * DEGREES / examples)) if examples > 1 else 1 + DEGREES


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

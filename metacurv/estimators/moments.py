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


class SampleMoments:
    """Mean and M2 of samples that arrive as vectors, merged a batch at a time (Chan, Golub, LeVeque 1983, eq. 2.1).

    A batch costs a dozen small tensor operations, so it is worth collecting samples before merging them.
    """

    BATCH = 64

    def __init__(self, curved: Sequence[NumberedParameter], device: torch.device) -> None:
        self.curved = list(curved)
        self._count = 0
        self._mean = torch.zeros(len(self.curved) + 1, dtype=torch.float64, device=device)
        self._m2 = torch.zeros_like(self._mean)
        self._pending: list[Tensor] = []

    def add(self, sample: Tensor) -> None:
        """sample: float64 [T]."""
        self._pending.append(sample)
        if len(self._pending) == self.BATCH:
            self._merge()

    def _pending_samples(self) -> Tensor:
        """float64 [m, T], and clears them."""
        parts = torch.stack(self._pending)
        self._pending.clear()
        return parts

    def _merge(self) -> None:
        if not self._pending:
            return
        parts = self._pending_samples()
        samples = torch.cat([parts, parts.sum(1, keepdim=True)], dim=1)
        m, n = len(samples), self._count + len(samples)
        mean = samples.mean(0)
        if not self._count:  # most readings end with their first batch
            self._mean, self._m2 = mean, (samples - mean).square().sum(0)
            self._count = m
            return
        delta = mean - self._mean
        self._m2 += (samples - mean).square().sum(0) + delta.square() * (self._count * m / n)
        self._mean += delta * (m / n)
        self._count = n

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and M2, float64 [T + 1], the total last."""
        self._merge()
        return self._mean, self._m2


class CombinedMoments(SampleMoments):
    """The same for samples that are fixed combinations of P scalars, combined a batch at a time.

    Args:
        curved: T parameters.
        device: of the scalars.
        table: float64 [T, P]; None while nothing is added.
    """

    def __init__(
        self, curved: Sequence[NumberedParameter], device: torch.device, table: Tensor | None
    ) -> None:
        super().__init__(curved, device)
        self.table = table

    def add_terms(self, terms: Sequence[Tensor]) -> None:
        """terms: P tensors of one element, in the order of the table's columns."""
        self._pending.extend(terms)
        if len(self._pending) == self.BATCH * len(terms):
            self._merge()

    def _pending_samples(self) -> Tensor:
        assert self.table is not None
        terms = torch.stack(self._pending).view(-1, self.table.shape[1])  # [m, P]
        self._pending.clear()
        return terms.to(torch.float64) @ self.table.t()


class StreamedMoments:
    """Mean and M2 that ``hutchinson_accumulate_`` updates, one probe at a time."""

    def __init__(self, curved: Sequence[NumberedParameter], device: torch.device) -> None:
        self.curved = list(curved)
        self.mean = torch.zeros(len(self.curved) + 1, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Mean and M2, float64 [T + 1], the total last."""
        return self.mean, self.m2

"""Running mean and variance of the samples v . H v, per parameter and in total, kept on the device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.problem.trace_estimate import TraceEstimate


def kept_table(rows: Sequence[Sequence[float]], columns: int, device: torch.device) -> Tensor:
    """Returns ``rows`` as float64 [rows, columns], not to be changed: equal numbers share memory."""
    return _table(tuple(map(tuple, rows)), columns, device)


@lru_cache(maxsize=64)
def _table(rows: tuple[tuple[float, ...], ...], columns: int, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # it outlives the caller's mode
        return torch.tensor(rows, dtype=torch.float64, device=device).view(len(rows), columns)


class RunningMoments:
    """Merges batches of samples without keeping them (Chan, Golub, LeVeque 1983, eq. 2.1).

    ``count``: the number of samples so far. ``mean``, ``m2``: float64 [D].
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.m2 = torch.zeros_like(self.mean)

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


class SampleMoments:
    """Mean and M2 of samples that arrive as vectors, merged a batch at a time.

    A batch costs a dozen small tensor operations, so it is worth collecting samples before merging them.
    """

    BATCH = 64

    def __init__(self, curved: Sequence[NumberedParameter], device: torch.device) -> None:
        self.curved = list(curved)
        self._running = RunningMoments(len(self.curved) + 1, device)
        self._pending: list[Tensor] = []

    def add(self, sample: Tensor) -> None:
        """Adds one sample, float64 [T]."""
        self._pending.append(sample)
        if len(self._pending) == self.BATCH:
            self._merge()

    def take(self) -> Tensor:
        """Removes and returns the samples that are not merged yet, float64 [m, T]."""
        parts = torch.stack(self._pending)
        self._pending.clear()
        return parts

    def _merge(self) -> None:
        if self._pending:
            parts = self.take()
            self._running.add(torch.cat([parts, parts.sum(1, keepdim=True)], dim=1))

    def moments(self) -> tuple[Tensor, Tensor]:
        """Returns mean and M2, float64 [T + 1], the total last."""
        self._merge()
        return self._running.mean, self._running.m2


class CombinedMoments(SampleMoments):
    """Mean and M2 of samples that are fixed combinations of P scalars, combined a batch at a time.

    Args:
        curved: T parameters.
        device: the device of the scalars.
        table: float64 [T, P], the combinations; None while nothing is added.
    """

    def __init__(
        self, curved: Sequence[NumberedParameter], device: torch.device, table: Tensor | None
    ) -> None:
        super().__init__(curved, device)
        self.table = table

    def add_terms(self, terms: Sequence[Tensor]) -> None:
        """Adds one sample as its P terms: tensors of one element, in the order of the table's columns."""
        self._pending.extend(terms)
        if len(self._pending) == self.BATCH * len(terms):
            self._merge()

    def take(self) -> Tensor:
        """Combines, removes and returns the samples that are not merged yet, float64 [m, T]."""
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
        """Returns mean and M2, float64 [T + 1], the total last."""
        return self.mean, self.m2

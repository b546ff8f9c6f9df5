"""What a trace estimate must be, from a dense Hessian or a forward-over-reverse product, probe by probe, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metacurv import TraceEstimate, ops
from tests.problems.problem import Problem

# In float64 through a handful of layers.
DENSE_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Samples:
    """v_p . (H v)_p of each parameter p (columns, by name) for probes 0 ... K - 1 (rows).

    ``scale``: the size of a typical sample, which rounding is held against, since single samples and means may cancel to
    nearly 0. So may the parts, by an identity such as a bias before a batch norm, so they are held against it too.
    """

    names: list[str]
    parts: np.ndarray  # [K, T]
    scale: float

    @property
    def totals(self) -> np.ndarray:
        return self.parts.sum(1)


def draw(params: Mapping[str, Tensor], probe: int, seed: int) -> dict[str, Tensor]:
    """Probe ``probe`` of the parameters that require a gradient, float64; numbers are positions among all of them."""
    live = [(number, name) for number, name in enumerate(params) if params[name].requires_grad]
    vectors = {name: torch.empty(params[name].shape, dtype=torch.float64) for _, name in live}
    ops.rademacher_(
        list(vectors.values()),
        seed=seed,
        probe=probe,
        numbers=[number for number, _ in live],
        backend="reference",
    )
    return vectors


def dense_samples(problem: Problem, hessian: Tensor, *, probes: int, seed: int) -> Samples:
    """From the dense Hessian [n, n] in the elements of ``problem.live``.

    Its norm is the scale: samples deviate from the trace by less than sqrt(2) times that (Avron and Toledo 2011).
    """
    sizes = [p.numel() for p in problem.live.values()]
    parts = []
    for probe in range(probes):
        vectors = draw(problem.params, probe, seed)
        v = torch.cat([vector.flatten() for vector in vectors.values()])
        parts.append([float(part.sum()) for part in (v * (hessian @ v)).split(sizes)])
    return Samples(list(problem.live), np.array(parts), float(hessian.norm()))


def product_samples(
    params: Mapping[str, Tensor],
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    *,
    probes: int,
    seed: int,
) -> Samples:
    """For models too large for a dense Hessian: forward-over-reverse products, with no double backward in them.

    params: float64; the scale is the root mean square of the samples.
    """
    values = {name: p.detach() for name, p in params.items()}
    parts = []
    for probe in range(probes):
        vectors = draw(params, probe, seed)
        _, products = torch.func.jvp(torch.func.grad(loss), (values,), (vectors,))
        parts.append([float((vectors[name] * products[name]).sum()) for name in params])
    samples = np.array(parts)
    return Samples(list(params), samples, float(np.sqrt((samples.sum(1) ** 2).mean())))


def assert_matches(estimate: TraceEstimate, samples: Samples, tolerance: float) -> None:
    """Value, standard error and per-parameter parts of ``estimate``, which drew the probes of ``samples``."""
    probes = len(samples.parts)
    assert estimate.n_samples == probes
    assert list(estimate.per_parameter) == samples.names
    assert list(estimate.per_parameter_stderr) == samples.names
    rows = [
        (estimate.value, estimate.stderr, samples.totals),
        *zip(
            estimate.per_parameter.values(),
            estimate.per_parameter_stderr.values(),
            samples.parts.T,
            strict=True,
        ),
    ]
    error = tolerance * samples.scale
    for (value, stderr, column), name in zip(rows, ["value", *samples.names], strict=True):
        assert abs(value - column.mean()) <= error, name
        if probes > 1:
            # Off by at most `error` in each sample, a standard error is off by at most that.
            assert abs(stderr - column.std(ddof=1) / math.sqrt(probes)) <= error, name
        else:
            # One probe says nothing about its error, unless there is no curvature at all.
            assert math.isnan(stderr) or (stderr == value == 0 and not column.any()), name

"""What a trace estimate must be, from a dense Hessian or a forward-over-reverse product, probe by probe, in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from metacurv import TraceEstimate, ops
from tests.problems import Problem

# The order of magnitude of what is added up in v . H v is sum |v_i H_ij v_j| = sum |H_ij|: rounding is relative to that,
# not to the value, which may cancel to 0.
DENSE_TOLERANCE = 1e-10


@dataclass(frozen=True)
class Samples:
    """v_p . (H v)_p of each parameter p (columns, by name) for probes 0 ... K - 1 (rows).

    ``scale``: the magnitude of the terms that make up a total; rounding is relative to it. Also for the parts: one may vanish
    by an identity (a bias before a batch norm) whose terms do not.
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
    """From the dense Hessian [n, n] in the elements of ``problem.live``."""
    sizes = [p.numel() for p in problem.live.values()]
    parts = []
    for probe in range(probes):
        vectors = draw(problem.params, probe, seed)
        v = torch.cat([vector.flatten() for vector in vectors.values()])
        parts.append([float(part.sum()) for part in (v * (hessian @ v)).split(sizes)])
    return Samples(list(problem.live), np.array(parts), float(hessian.abs().sum()))


def product_samples(
    params: Mapping[str, Tensor],
    loss: Callable[[Mapping[str, Tensor]], Tensor],
    *,
    probes: int,
    seed: int,
) -> Samples:
    """For models too large for a dense Hessian: forward-over-reverse products, with no double backward in them.

    params: float64; the scale is the mean over probes of sum |v_i (H v)_i|.
    """
    values = {name: p.detach() for name, p in params.items()}
    parts, sizes = [], []
    for probe in range(probes):
        vectors = draw(params, probe, seed)
        _, products = torch.func.jvp(torch.func.grad(loss), (values,), (vectors,))
        terms = [(vectors[name] * products[name]) for name in params]
        parts.append([float(term.sum()) for term in terms])
        sizes.append(sum(float(term.abs().sum()) for term in terms))
    return Samples(list(params), np.array(parts), float(np.mean(sizes)))


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

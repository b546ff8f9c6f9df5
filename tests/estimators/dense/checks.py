"""What an estimate must be, given the dense truth."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

import metacurv
from metacurv import TraceEstimate
from tests.estimators.dense.case import FORWARD_SEED, Case
from tests.estimators.dense.truth import Truth
from tests.problems.samples import draw

# Thousands of numbers are held against their standard errors, each with its own fixed seed. Of normal ones 1 in 16,000 is more
# than 4 away, 1 in 1.7 million more than 5; a sample's standard error and skewed samples make it some more.
SIGMAS, SIGMAS_OF_PARTS = 4.0, 5.0
EXACT = 1e-9
# Mean absolute curvature that counts as rounding where the truth is 0.
TINY = 1e-12


def measure(case: Case, **options) -> TraceEstimate:
    """estimate_trace with the dropout masks of the truth; the model must come out of it as it was."""
    before = {name: (p, p.detach().clone()) for name, p in case.model.named_parameters()}
    torch.manual_seed(FORWARD_SEED)
    try:
        return metacurv.estimate_trace(
            case.model, case.loss_fn, case.inputs, case.targets, **options
        )
    finally:
        after = dict(case.model.named_parameters())
        assert list(after) == list(before)
        for name, (parameter, value) in before.items():
            assert after[name] is parameter, name
            assert after[name].equal(value), name


def all_parts(estimate: TraceEstimate, truth: Truth) -> Iterator[tuple[str, float, float, float]]:
    """(name, value, standard error, truth) of every parameter and layer; the names must be the truth's."""
    for what in ("parameter", "layer"):
        values = getattr(estimate, f"per_{what}")
        errors = getattr(estimate, f"per_{what}_stderr")
        expected = getattr(truth, f"per_{what}")(estimate.kind)
        assert list(values) == list(errors) == list(expected)
        for name, value in values.items():
            yield f"{what} {name!r}", value, errors[name], expected[name]


def assert_exact(estimate: TraceEstimate, truth: Truth) -> None:
    error = EXACT * truth.scale + TINY
    assert (estimate.method, estimate.stderr) == ("exact", 0)
    assert abs(estimate.value - truth.trace(estimate.kind)) <= error
    for name, value, stderr, expected in all_parts(estimate, truth):
        assert abs(value - expected) <= error, name
        assert stderr == 0, name


def assert_within_errors(estimate: TraceEstimate, truth: Truth, share: float | None = 0.3) -> None:
    """Total, layers and parameters, which also have to add up; errors small enough to tell a wrong formula by: a ``share``."""
    rounding = EXACT * truth.scale + TINY
    expected = truth.trace(estimate.kind)
    assert math.isfinite(estimate.stderr)
    if share is not None:
        assert estimate.stderr <= share * truth.scale + rounding
    assert abs(estimate.value - expected) <= SIGMAS * estimate.stderr + rounding
    for parts in (estimate.per_parameter, estimate.per_layer):
        assert abs(sum(parts.values()) - estimate.value) <= rounding
    for name, value, stderr, part in all_parts(estimate, truth):
        assert abs(value - part) <= SIGMAS_OF_PARTS * stderr + rounding, name


def assert_probes(estimate: TraceEstimate, case: Case, truth: Truth, tolerance: float) -> None:
    """Value and errors from the very probes drawn: v . (H v), with v by the package's generator.

    ``tolerance``: of the norm of H, which samples deviate by (Avron and Toledo 2011), and of 1 where H is 0.
    """
    matrix = truth.matrices[estimate.kind]
    samples = []
    for probe in range(estimate.n_samples):
        vectors = draw(dict(case.model.named_parameters()), probe, estimate.seed)
        v = torch.cat([vector.flatten() for vector in vectors.values()])
        samples.append(torch.stack([s.sum() for s in (v * (matrix @ v)).split(truth.sizes)]))
    table = torch.stack(samples)  # [K, T]
    error = tolerance * max(1.0, matrix.norm().item())
    _assert_moments("total", table.sum(1), estimate.value, estimate.stderr, error)
    for column, (name, value, stderr, _) in zip(
        table.t(), all_parts(estimate, truth), strict=False
    ):
        _assert_moments(name, column, value, stderr, error)


def _assert_moments(
    name: str, samples: torch.Tensor, value: float, stderr: float, error: float
) -> None:
    """samples: [K]."""
    assert abs(value - samples.mean().item()) <= error, name
    assert abs(stderr - samples.std().item() / math.sqrt(len(samples))) <= error, name

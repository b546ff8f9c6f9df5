"""hessian_trace against dense Hessians in float64, probe by probe; then its convergence and its standard error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import metacurv
from metacurv import hessian_trace
from tests.helpers import ESTIMATOR_BACKENDS, TOLERANCE, sampled
from tests.problems.linear_problems import LINEAR
from tests.problems.model_problems import GENERAL
from tests.problems.problem import build, func_hessian
from tests.problems.samples import DENSE_TOLERANCE, assert_matches, dense_samples
from tests.problems.stack_problems import STACKS

PROBLEMS = {**GENERAL, **LINEAR, **STACKS}


@pytest.fixture(scope="module", params=sampled(PROBLEMS, 2))
def truth(request):
    """A problem and its dense Hessian, once for all tests of this file."""
    problem = build(PROBLEMS[request.param])
    return problem, func_hessian(problem)


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
def test_probe_by_probe(truth, backend):
    problem, hessian = truth
    for probes, seed in ((1, 0), (3, 5)):
        estimate = hessian_trace(
            problem.loss(problem.params),
            problem.params,
            n_samples=probes,
            seed=seed,
            backend=backend,
        )
        samples = dense_samples(problem, hessian, probes=probes, seed=seed)
        assert_matches(estimate, samples, DENSE_TOLERANCE)
        assert (estimate.method, estimate.kind, estimate.seed) == ("hutchinson", "hessian", seed)


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
def test_the_loss_can_still_be_differentiated(truth, backend):
    """Once or again, with the same gradients, to the bit, as if nothing had been measured."""
    problem, _ = truth
    live = list(problem.live.values())
    plain = torch.autograd.grad(problem.loss(problem.params).sum(), live, allow_unused=True)
    loss = problem.loss(problem.params)
    hessian_trace(loss, problem.params, n_samples=2, backend=backend)
    hessian_trace(loss, problem.params, n_samples=1, seed=1, backend=backend)
    assert all(p.grad is None for p in problem.params.values())
    after = torch.autograd.grad(loss.sum(), live, allow_unused=True)
    for expected, gradient in zip(plain, after, strict=True):
        assert (expected is None) == (gradient is None)
        assert expected is None or torch.equal(expected.to_dense(), gradient.to_dense())


@pytest.mark.parametrize(
    "name", ["mlp_tanh", "a_weight_used_both_ways", "negative_curvature", "one_weight_in_a_penalty"]
)
def test_converges_with_the_law_of_the_estimator(name):
    """Mean, spread and standard error: E = tr H, Var = 2 (||H||_F^2 - sum H_ii^2) (Avron and Toledo 2011)."""
    problem = build(PROBLEMS[name])
    hessian = func_hessian(problem)
    trace = hessian.trace().item()
    variance = 2 * (hessian.square().sum() - hessian.diagonal().square().sum()).item()
    probes = 1000
    estimate = hessian_trace(problem.loss(problem.params), problem.params, n_samples=probes, seed=3)
    assert abs(estimate.value - trace) <= 4 * estimate.stderr + 1e-9 * abs(trace)
    # The relative spread of a sample variance over K probes is below sqrt(14 / K) (kurtosis of a quadratic form < 15).
    measured = estimate.stderr**2 * probes
    assert measured == pytest.approx(variance, rel=4 * math.sqrt(14 / probes), abs=1e-12)
    assert sum(estimate.per_parameter.values()) == pytest.approx(estimate.value, rel=1e-9)
    for part, error, block in zip(
        estimate.per_parameter.values(),
        estimate.per_parameter_stderr.values(),
        hessian.diagonal().split([p.numel() for p in problem.live.values()]),
        strict=True,
    ):
        assert abs(part - block.sum().item()) <= 4 * error + 1e-9 * abs(trace)


def test_standard_errors_are_calibrated():
    """Over many seeds, (value - trace) / stderr is as wide as its law says, and unbiased."""
    problem = build(PROBLEMS["mlp_tanh"])
    trace = func_hessian(problem).trace().item()
    loss = problem.loss(problem.params)
    probes, seeds = 16, 200
    estimates = [
        hessian_trace(loss, problem.params, n_samples=probes, seed=seed) for seed in range(seeds)
    ]
    values = np.array([estimate.value for estimate in estimates])
    errors = np.array([estimate.stderr for estimate in estimates])
    assert len(set(values)) == seeds
    assert abs(values.mean() - trace) <= 4 * values.std() / math.sqrt(seeds)
    assert math.sqrt((errors**2).mean()) == pytest.approx(values.std(ddof=1), rel=0.2)
    inside = (np.abs(values - trace) <= 2 * errors).mean()  # 0.936 for Student's t with 15 degrees
    assert 0.88 <= inside <= 0.98


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
def test_seeds(backend):
    problem = build(PROBLEMS["mlp_tanh"])
    loss = problem.loss(problem.params)

    def run(seed):
        return hessian_trace(loss, problem.params, n_samples=3, seed=seed, backend=backend)

    assert run(0) == run(0)
    assert run(2**64 - 1) == run(2**64 - 1)
    assert len({run(seed).value for seed in (0, 1, 2**32, 2**63, 2**64 - 1)}) == 5


@pytest.mark.slow
@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
def test_more_probes_extend_the_same_sequence(backend):
    """Probes are numbered from 0, so K probes are the first K of any more."""
    problem = build(PROBLEMS["mlp_tanh"])
    loss = problem.loss(problem.params)

    def total(probes):
        run = hessian_trace(loss, problem.params, n_samples=probes, backend=backend)
        return run.value * probes

    singles = [total(k + 1) - total(k) for k in range(1, 5)]
    hessian = func_hessian(problem)
    expected = dense_samples(problem, hessian, probes=5, seed=0).totals
    np.testing.assert_allclose([total(1), *singles], expected, rtol=1e-9)
    # Past the batch in which samples are merged, too.
    many = hessian_trace(loss, problem.params, n_samples=150, backend=backend)
    assert_matches(many, dense_samples(problem, hessian, probes=150, seed=0), DENSE_TOLERANCE)


def test_equal_curvature_in_every_direction_has_no_error():
    w = torch.tensor([1.0, 2.0, 3.0], requires_grad=True)
    estimate = hessian_trace(2 * (w**2).sum(), [w], n_samples=5)
    assert (estimate.value, estimate.stderr) == (12.0, 0.0)
    assert estimate.per_parameter == {"0": 12.0}
    assert str(estimate) == "tr(hessian) = 12 +- 0 (hutchinson, 5 probes)"


def test_an_estimate_cannot_be_changed():
    w = torch.ones(2, requires_grad=True)
    estimate = hessian_trace((w**2).sum(), [w])
    assert math.isnan(estimate.stderr)
    assert isinstance(estimate, metacurv.TraceEstimate)
    with pytest.raises(AttributeError):
        estimate.value = 3.0


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
def test_any_thread_count(backend, restore_threads):
    problem = build(PROBLEMS["residual"])
    values = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        loss = problem.loss(problem.params)
        values.append(hessian_trace(loss, problem.params, n_samples=4, backend=backend).value)
    assert values == pytest.approx([values[0]] * 3, rel=TOLERANCE[torch.float64])

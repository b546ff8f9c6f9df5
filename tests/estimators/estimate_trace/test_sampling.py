"""How estimate_trace samples: when it stops, what it says of its error, and which probes it draws."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from metacurv import TraceEstimate, hessian_trace
from tests.estimators.dense.case import Case, build, elementwise, general, piecewise
from tests.estimators.dense.checks import assert_probes, measure
from tests.estimators.dense.truth import Truth, dense_truth
from tests.problems.problem import rand

SAMPLERS = ["activation", "hutchinson"]
samplers = pytest.mark.parametrize("method", SAMPLERS)
# The fewest samples that an error is believed after: activation space tells the six examples apart.
FEWEST = {"activation": 4, "hutchinson": 16}
# A perceptron whose trace is larger than the norm of its Hessian, which single samples scatter by.
SEED = 3


def perceptron() -> Case:
    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)]
    return build(lambda: elementwise(nn.Sequential(*layers), rand(6, 3)), seed=SEED)


@pytest.fixture(scope="module")
def case() -> Case:
    return perceptron()


@pytest.fixture(scope="module")
def truth(case) -> Truth:
    return dense_truth(case)


@samplers
@pytest.mark.parametrize("rtol", [0.3, 0.05])
def test_rtol_is_kept(case, truth, method, rtol):
    estimate = measure(case, method=method, rtol=rtol)
    assert estimate.converged
    assert 0 < estimate.stderr <= rtol * abs(estimate.value)
    assert estimate.n_samples >= FEWEST[method]
    assert abs(estimate.value - truth.trace("hessian")) <= 4 * estimate.stderr
    # Not by many times more samples than it takes.
    assert estimate.stderr >= 0.2 * rtol * abs(estimate.value) or estimate.n_samples <= 16


def test_default_rtol(case):
    estimate = measure(case, method="activation")
    assert estimate.stderr <= 0.05 * abs(estimate.value)
    assert estimate.converged


@samplers
def test_an_error_is_believed_after_fifteen_degrees_of_freedom(case, method):
    for seed in range(20):
        n = measure(case, method=method, rtol=0.999, seed=seed).n_samples
        assert FEWEST[method] <= n <= 16


@samplers
def test_n_samples_with_rtol_is_the_least(case, method):
    assert measure(case, method=method, n_samples=40, rtol=0.999, seed=3).n_samples == 40
    assert measure(case, method=method, n_samples=2, rtol=0.999, seed=3).n_samples >= FEWEST[method]


@samplers
def test_n_samples_alone_is_the_number(case, method):
    for n in (1, 2, 19):
        estimate = measure(case, method=method, n_samples=n)
        assert (estimate.n_samples, estimate.converged) == (n, True)


@samplers
@pytest.mark.parametrize("most", [1, 5, 50])
def test_max_samples_ends_it(case, method, most):
    with pytest.warns(UserWarning, match="max_samples"):
        estimate = measure(case, method=method, rtol=1e-3, max_samples=most)
    assert (estimate.n_samples, estimate.converged) == (most, False)
    assert "max_samples" in estimate.why
    assert math.isnan(estimate.stderr) == (most == 1)


def test_no_warning_without_rtol(case):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert measure(case, method="activation", n_samples=2).converged


class Product(nn.Module):
    """u * w: every sample is +2c or -2c, and the trace is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.w = nn.Parameter(rand(1)), nn.Parameter(rand(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.u * self.w


def test_a_trace_of_zero_has_no_relative_error():
    case = build(lambda: general(Product(), rand(4, 1), lambda output, _: output.sum()))
    assert dense_truth(case).trace("hessian") == 0
    with pytest.warns(UserWarning, match="max_samples"):
        estimate = measure(case, method="hutchinson", rtol=0.05, max_samples=100)
    assert not estimate.converged
    assert abs(estimate.value) <= 4 * estimate.stderr


@pytest.mark.parametrize("method", ["auto", "activation", "hutchinson", "finite_difference"])
def test_no_curvature_at_all(method):
    """Samples that are 0 without exception are no reason to draw ten thousand, nor to warn."""
    case = build(lambda: piecewise(nn.Linear(3, 2), rand(4, 3), lambda output, _: output.sum()))
    estimate = measure(case, method=method, rtol=0.05)
    assert abs(estimate.value) <= 1e-8
    assert estimate.n_samples <= 16 or method == "finite_difference"  # which rounds


@samplers
def test_an_error_takes_two_samples(case, method):
    one, two = (measure(case, method=method, n_samples=n) for n in (1, 2))
    assert math.isnan(one.stderr)
    assert all(map(math.isnan, one.per_layer_stderr.values()))
    assert all(map(math.isnan, one.per_parameter_stderr.values()))
    assert two.stderr > 0


@samplers
def test_seeds(case, method):
    first, again, other = (
        measure(case, method=method, n_samples=4, seed=seed) for seed in (7, 7, 8)
    )
    assert first == again
    assert (first.value, first.stderr) != (other.value, other.stderr)
    assert (first.seed, other.seed) == (7, 8)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("method", ["exact", "activation"])
def test_memory_changes_no_number(method, kind):
    case = build(
        lambda: piecewise(nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 9)), rand(6, 3))
    )
    large = measure(case, method=method, kind=kind, n_samples=9)
    for memory in (1, 3000):
        small = measure(case, method=method, kind=kind, n_samples=9, max_memory=memory)
        for name in ("value", "stderr", "per_parameter", "per_layer", "per_layer_stderr"):
            assert getattr(small, name) == pytest.approx(getattr(large, name), rel=1e-10)


def columns(estimate: TraceEstimate) -> dict[str, tuple[float, float]]:
    """(value, standard error) of everything that is reported."""
    parts = {"total": (estimate.value, estimate.stderr)}
    for what in ("parameter", "layer"):
        values = getattr(estimate, f"per_{what}")
        errors = getattr(estimate, f"per_{what}_stderr")
        parts |= {f"{what} {name}": (value, errors[name]) for name, value in values.items()}
    return parts


def samples_of(case: Case, count: int, **options: Any) -> dict[str, np.ndarray]:
    """One by one, from means of the first 1, 2, ... ``count`` of them."""
    means = [columns(measure(case, n_samples=n, **options)) for n in range(1, count + 1)]
    found = {}
    for name in means[0]:
        sums = np.array([n * mean[name][0] for n, mean in enumerate(means, start=1)])
        found[name] = np.diff(sums, prepend=0.0)
    return found


@pytest.mark.parametrize(
    ("method", "kind"),
    [*((method, "hessian") for method in SAMPLERS), ("activation", "ggn"), ("hutchinson", "ggn")],
)
def test_more_samples_go_on_where_fewer_ended(case, method, kind):
    """And every mean and standard error, of a layer too, is that of its own samples.

    Where examples are told apart, errors come from each of them: near those of the sums, but not the same.
    """
    count = 12
    found = samples_of(case, count, method=method, kind=kind)
    together = columns(measure(case, method=method, kind=kind, n_samples=count))
    for name, samples in found.items():
        value, stderr = together[name]
        scale = abs(samples).max() + 1e-12
        assert abs(value - samples.mean()) <= 1e-10 * scale, name
        of_sums = samples.std(ddof=1) / math.sqrt(count)
        if method == "activation":
            assert of_sums / 2.5 <= stderr <= 2.5 * of_sums, name
        else:
            assert abs(stderr - of_sums) <= 1e-10 * scale, name
        assert samples.std() > 1e-6 or name == "total", name  # a frozen number would pass as well


@pytest.mark.parametrize("method", ["activation", "hutchinson", "finite_difference"])
def test_parts_add_up(case, method):
    estimate = measure(case, method=method, n_samples=5)
    for parts in (estimate.per_parameter, estimate.per_layer):
        assert sum(parts.values()) == pytest.approx(estimate.value, rel=1e-12)
    assert estimate.per_layer["0"] == pytest.approx(
        estimate.per_parameter["0.weight"] + estimate.per_parameter["0.bias"], rel=1e-12
    )


@pytest.mark.parametrize("method", ["activation", "hutchinson"])
def test_errors_are_those_of_other_seeds(case, method):
    """By 200 independent samples: their spread is known to 5 %, that of one long run too."""
    singles = [columns(measure(case, method=method, n_samples=1, seed=s)) for s in range(200)]
    long_run = columns(measure(case, method=method, n_samples=200, seed=1000))
    for name, (value, stderr) in long_run.items():
        values = np.array([single[name][0] for single in singles])
        spread = values.std(ddof=1)
        assert stderr * math.sqrt(200) == pytest.approx(spread, rel=0.3), name
        assert abs(values.mean() - value) <= 5 * math.hypot(stderr, spread / math.sqrt(200)), name


@pytest.mark.parametrize("method", ["hutchinson", "finite_difference"])
def test_probes_are_those_of_hessian_trace(case, truth, method):
    estimate = measure(case, method=method, n_samples=6, seed=2**63 + 1)
    tolerance = 1e-6 if method == "finite_difference" else 1e-10
    assert_probes(estimate, case, truth, tolerance)
    other = hessian_trace(case.loss(), case.model.named_parameters(), n_samples=6, seed=2**63 + 1)
    scale = truth.scale * tolerance
    assert abs(estimate.value - other.value) <= scale
    assert abs(estimate.stderr - other.stderr) <= scale
    assert estimate.per_parameter == pytest.approx(other.per_parameter, abs=scale)
    assert estimate.per_parameter_stderr == pytest.approx(other.per_parameter_stderr, abs=scale)


@pytest.mark.parametrize("method", ["activation", "split", "hutchinson"])
def test_a_progress_bar(case, method, capsys):
    measure(case, method=method, n_samples=7, progress=True)
    assert "trace: " in capsys.readouterr().err
    measure(case, method=method, n_samples=7, progress=False)
    measure(case, method=method, n_samples=7)
    assert capsys.readouterr().err == ""
    with pytest.raises(TypeError, match="progress must be True, False or None, got"):
        measure(case, progress="yes")

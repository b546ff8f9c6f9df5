"""float32 on networks of real size: native against reference, and both against exact products in float64."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from metacurv import hessian_trace
from tests.helpers import ESTIMATOR_BACKENDS, TOLERANCE, needs_native
from tests.problems.large_networks import mlp, wide_and_shared
from tests.problems.samples import assert_matches, product_samples

NETWORKS = {
    "mnist1d": lambda: mlp(40, 100, 100, 10),
    "mnist1d with tanh": lambda: mlp(40, 100, 100, 10, activation=F.tanh),
    "40-256-256-10": lambda: mlp(40, 256, 256, 10),
    "wide and shared": wide_and_shared,
}


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    return NETWORKS[request.param]()


def run(network, dtype, backend, probes, seed=0):
    params = network.to(dtype)
    return hessian_trace(network.loss(params), params, n_samples=probes, seed=seed, backend=backend)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_native_equals_reference(network, dtype):
    """Relative to a typical sample, the root mean square of v . H v: the mean of a few may cancel to nearly 0."""
    probes = 8
    native = run(network, dtype, "native", probes)
    reference = run(network, dtype, "reference", probes)
    spread = reference.stderr * math.sqrt(probes - 1)
    typical = math.hypot(reference.value, spread)
    assert abs(native.value - reference.value) <= TOLERANCE[dtype] * typical
    assert abs(native.stderr - reference.stderr) <= TOLERANCE[dtype] * typical
    for name, part in reference.per_parameter.items():
        assert abs(native.per_parameter[name] - part) <= TOLERANCE[dtype] * typical, name


@needs_native
def test_native_equals_reference_in_bfloat16():
    """Sums over activations in 8 bits would be too rough, so both take the same road there: equal samples, equal sums."""
    network = mlp(12, 30, 5, rows=20)
    native, reference = (
        run(network, torch.bfloat16, backend, 4) for backend in ("native", "reference")
    )
    assert native.value == pytest.approx(reference.value, rel=TOLERANCE[torch.float64])
    assert native.per_parameter == pytest.approx(
        reference.per_parameter, rel=TOLERANCE[torch.float64], abs=1e-15
    )


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_against_forward_over_reverse_products(network, dtype, backend):
    samples = product_samples(network.to(torch.float64), network.loss, probes=3, seed=4)
    assert_matches(run(network, dtype, backend, 3, seed=4), samples, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
def test_precision_and_layout_do_not_change_the_probes(backend):
    """Weights stored transposed in memory, in float32 and float64: the same signs by index, so nearly the same values."""
    network = mlp(12, 30, 5, rows=20)
    values = []
    for dtype in (torch.float32, torch.float64):
        params = network.to(dtype)
        for name in ("0.weight", "1.weight"):
            params[name] = params[name].detach().t().contiguous().t().requires_grad_()
        values.append(hessian_trace(network.loss(params), params, n_samples=6, backend=backend))
    exact = run(network, torch.float64, backend, 6)
    assert values[1].value == pytest.approx(exact.value, rel=1e-11)
    assert values[0].value == pytest.approx(exact.value, rel=1e-4)

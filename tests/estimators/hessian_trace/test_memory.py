"""Memory: K probes need what one needs, which is one copy of the parameters beyond the double-backward graph."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from metacurv import hessian_trace
from tests.helpers import ESTIMATOR_BACKENDS, needs_native, peak_bytes, sampled
from tests.problems.large_networks import Network, mlp


@dataclass(frozen=True)
class Penalized:
    """A penalty on a weight, so that the layers are not pushed through but left to autograd."""

    network: Network

    def to(self, dtype):
        return self.network.to(dtype)

    def loss(self, params):
        return self.network.loss(params) + params["1.weight"].square().sum()


NETWORKS = {
    "mnist1d": lambda: mlp(40, 100, 100, 10),
    "parameters outweigh activations": lambda: mlp(40, 256, 256, 10, rows=8),
    "a penalty, mnist1d": lambda: Penalized(mlp(40, 100, 100, 10)),
    "a penalty, parameters outweigh activations": lambda: Penalized(mlp(40, 256, 256, 10, rows=8)),
    "tanh": lambda: mlp(40, 100, 100, 10, activation=torch.tanh),
}


@pytest.fixture(scope="module", params=sampled(NETWORKS, 4))
def case(request):
    network = NETWORKS[request.param]()
    params = network.to(torch.float32)
    return params, network.loss(params)


def one_product(loss, params):
    """The double backward that every probe needs, with the probe made beforehand: nothing of ours in it."""
    probe = [torch.ones_like(p) for p in params.values()]

    def run():
        gradients = torch.autograd.grad(loss, list(params.values()), create_graph=True)
        torch.autograd.grad(gradients, list(params.values()), probe, retain_graph=True)

    return run


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
def test_probes_share_their_memory(case, backend):
    params, loss = case
    few, many = (
        peak_bytes(lambda k=k: hessian_trace(loss, params, n_samples=k, backend=backend))
        for k in (2, 16)
    )
    assert many <= few + 10_000  # numbers kept for each probe: one a parameter


@needs_native
def test_one_copy_of_the_parameters_beyond_the_double_backward(case):
    """Not on the reference backend, whose integers of the generator take 64 bits for every sign."""
    params, loss = case
    copy = sum(p.numel() * p.element_size() for p in params.values())
    allowed = peak_bytes(one_product(loss, params)) + copy
    used = peak_bytes(lambda: hessian_trace(loss, params, n_samples=8, backend="native"))
    assert used <= allowed + 20_000  # the statistics


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
def test_everything_is_given_back(case, backend):
    params, loss = case
    hessian_trace(loss, params, n_samples=2, backend=backend)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        hessian_trace(loss, params, n_samples=4, backend=backend)
    events = profiled.profiler.kineto_results.events()
    assert sum(e.nbytes() for e in events if e.name() == "[memory]") == 0

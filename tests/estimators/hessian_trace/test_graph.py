"""What measuring leaves alone, and graphs with hooks, modes and regions of the user's in them."""

from __future__ import annotations

import gc
import random
import weakref

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metacurv import hessian_trace
from tests.helpers import ESTIMATOR_BACKENDS, TOLERANCE, assert_same, needs_native
from tests.problems.linear_problems import LINEAR
from tests.problems.problem import Problem, build, func_hessian, leaf, rand
from tests.problems.samples import DENSE_TOLERANCE, assert_matches, dense_samples

backends = pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)


def model_and_data():
    model = nn.Sequential(
        nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.3), nn.Linear(6, 3)
    )
    return model, torch.randn(8, 4), torch.arange(8) % 3


@backends
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_nothing_of_the_users_changes(backend, mode):
    """.grad, parameters, buffers, modes, requires_grad flags and the three random states."""
    model, x, y = model_and_data()
    getattr(model, mode)()
    model[0].bias.requires_grad_(False)
    model[4].weight.grad = torch.full_like(model[4].weight, 3.0)
    loss = F.cross_entropy(model(x), y)

    def everything():
        return {
            "state": {name: value.clone() for name, value in model.state_dict().items()},
            "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
            "flags": [p.requires_grad for p in model.parameters()],
            "modes": [module.training for module in model.modules()],
            "versions": [p._version for p in model.parameters()],
            "torch": torch.get_rng_state(),
            "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002 (the global state is the point)
            "python": random.getstate(),
            "gradients on": torch.is_grad_enabled(),
        }

    before = everything()
    hessian_trace(loss, model.named_parameters(), n_samples=3, backend=backend)
    assert_same(everything(), before)
    assert type(model[4].weight.grad) is torch.Tensor
    assert not model[4].weight.grad.requires_grad


@backends
def test_backward_afterwards_gives_the_plain_gradients(backend):
    model, x, y = model_and_data()
    model.eval()
    F.cross_entropy(model(x), y).backward()
    plain = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    loss = F.cross_entropy(model(x), y)
    hessian_trace(loss, model.parameters(), n_samples=2, backend=backend)
    loss.backward()
    for p, expected in zip(model.parameters(), plain, strict=True):
        assert torch.equal(p.grad, expected)
        assert not p.grad.requires_grad


@backends
def test_nothing_is_kept_alive(backend):
    """No reference cycle through a graph: the model goes when the last name does, without the collector."""
    model, x, y = model_and_data()
    loss = F.cross_entropy(model(x), y)
    gc.disable()
    try:
        hessian_trace(loss, model.named_parameters(), n_samples=2, backend=backend)
        dead = weakref.ref(model[0].weight)
        del model, loss
        assert dead() is None
    finally:
        gc.enable()


@backends
def test_hooks_that_only_look(backend):
    """On parameters and activations: they may fire, they change nothing, and accumulation hooks never fire."""
    x, w, b, v = rand(6, 4), leaf(5, 4), leaf(5), leaf(3, 5)
    params = {"w": w, "b": b, "v": v}

    def loss(p, hooked=False):
        h = F.linear(x, p["w"], p["b"])
        a = h.tanh()
        if hooked:
            for tensor in (h, a):
                tensor.register_hook(lambda gradient: None)
        return F.linear(a, p["v"]).exp().mean()

    accumulated = []
    w.register_hook(lambda gradient: None)
    v.register_post_accumulate_grad_hook(accumulated.append)
    estimate = hessian_trace(loss(params, True), params, n_samples=2, seed=3, backend=backend)
    problem = Problem({n: p.detach().requires_grad_() for n, p in params.items()}, loss)
    samples = dense_samples(problem, func_hessian(problem), probes=2, seed=3)
    assert_matches(estimate, samples, DENSE_TOLERANCE)
    assert accumulated == []


@needs_native
@pytest.mark.parametrize("where", ["weight", "bias", "input of a layer"])
def test_hooks_that_change_gradients_mean_the_same_on_both_backends(where):
    """As when a hook masks a part of a weight. What is measured then is the derivative of the gradient that autograd gives."""
    x, values, estimates = rand(6, 4), (rand(5, 4), rand(3, 5), rand(3)), {}
    for backend in ("native", "reference"):
        w, v, c = (value.clone().requires_grad_() for value in values)
        a = F.linear(x, w).tanh()
        hooked = {"weight": v, "bias": c, "input of a layer": a}[where]
        hooked.register_hook(lambda gradient: 3 * gradient)
        loss = F.linear(a, v, c).exp().mean()
        params = {"w": w, "v": v, "c": c}
        estimates[backend] = hessian_trace(loss, params, n_samples=3, backend=backend)
    native, reference = estimates["native"], estimates["reference"]
    assert native.value == pytest.approx(reference.value, rel=1e-9)
    assert native.per_parameter == pytest.approx(reference.per_parameter, rel=1e-9)


@backends
def test_activations_that_retain_their_gradient(backend):
    x, w, v = rand(6, 4), leaf(5, 4), leaf(3, 5)
    h = F.linear(x, w)
    h.retain_grad()
    loss = F.linear(h.tanh(), v).exp().mean()
    hessian_trace(loss, [w, v], n_samples=2, backend=backend)
    h.grad = None
    loss.backward()
    assert h.grad is not None
    assert not h.grad.requires_grad


@backends
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad])
def test_called_with_gradients_switched(backend, mode):
    """loss.backward() works under no_grad; so does this."""
    problem = build(LINEAR["inputs_2d"])
    loss = problem.loss(problem.params)
    expected = hessian_trace(loss, problem.params, n_samples=2, backend=backend)
    with mode():
        estimate = hessian_trace(loss, problem.params, n_samples=2, backend=backend)
    assert estimate == expected


@backends
@pytest.mark.parametrize("inside", [True, False], ids=["called inside", "called outside"])
@pytest.mark.parametrize("computed", [True, False], ids=["loss inside", "loss outside"])
def test_autocast_regions(backend, inside, computed):
    """The usual loop calls update_curvature inside the region in which the loss was computed, or just after it."""
    x = rand(16, 6).float()

    def loss(p):
        h = F.linear(x.to(p["w"].dtype), p["w"], p["b"]).tanh()
        return F.linear(h, p["v"]).float().square().mean()

    params = {
        name: p.detach().float().requires_grad_()
        for name, p in {"w": leaf(8, 6), "b": leaf(8), "v": leaf(3, 8)}.items()
    }
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=computed):
        value = loss(params)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
        estimate = hessian_trace(value, params, n_samples=4, seed=2, backend=backend)
    exact = Problem(
        {n: p.detach().double().requires_grad_() for n, p in params.items()},
        lambda p: F.linear(F.linear(x.double(), p["w"], p["b"]).tanh(), p["v"]).square().mean(),
    )
    samples = dense_samples(exact, func_hessian(exact), probes=4, seed=2)
    lowest = torch.bfloat16 if computed or inside else torch.float32
    assert_matches(estimate, samples, TOLERANCE[lowest])


@backends
def test_no_wait_for_the_host_in_the_loop(backend):
    """Reading a tensor's value costs a synchronisation on CUDA: there are as many for 8 probes as for 2."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Count(TorchDispatchMode):
        reads = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function is torch.ops.aten._local_scalar_dense.default:
                self.reads += 1
            return function(*args, **(kwargs or {}))

    problem = build(LINEAR["a_weight_in_a_penalty"])
    loss = problem.loss(problem.params)
    reads = []
    for probes in (2, 8):
        with Count() as count:
            hessian_trace(loss, problem.params, n_samples=probes, backend=backend)
        reads.append(count.reads)
    assert reads[0] == reads[1]

"""When a probe is pushed through rules and when not; that it is right is in test_hessian_trace, with all other problems."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from metacurv import hessian_trace
from metacurv.estimators.probes import hutchinson
from metacurv.estimators.probes.double_backward import DoubleBackward
from metacurv.estimators.tangents.forward_over_reverse import ForwardOverReverse
from tests.problems.large_networks import mlp
from tests.problems.linear_problems import LINEAR
from tests.problems.model_problems import GENERAL
from tests.problems.problem import build, classify, leaf, rand
from tests.problems.stack_problems import STACKS


def way(loss, params, monkeypatch, backend="auto"):
    """The class that measured."""
    taken = []
    read = hutchinson.read_trace

    def note(products, **kwargs):
        taken.append(type(products))
        return read(products, **kwargs)

    monkeypatch.setattr(hutchinson, "read_trace", note)
    hessian_trace(loss, params, backend=backend)
    (way_taken,) = taken
    return way_taken


@pytest.mark.parametrize("name", STACKS)
def test_stacks_are_pushed_through(name, monkeypatch):
    problem = build(STACKS[name])
    assert way(problem.loss(problem.params), problem.params, monkeypatch) is ForwardOverReverse


@pytest.mark.parametrize("name", ["mlp_relu", "mlp_tanh", "mlp_gelu"])
def test_so_are_modules(name, monkeypatch):
    problem = build(GENERAL[name])
    assert way(problem.loss(problem.params), problem.params, monkeypatch) is ForwardOverReverse


@pytest.mark.parametrize("name", ["a_weight_in_a_penalty", "a_bias_used_elsewhere"])
def test_a_parameter_used_outside_the_stack_is_left_to_autograd(name, monkeypatch):
    problem = build(LINEAR[name])
    assert way(problem.loss(problem.params), problem.params, monkeypatch) is not ForwardOverReverse


def test_an_activation_used_twice_is_left_to_autograd(monkeypatch):
    x, params = rand(6, 4), {"w": leaf(4, 4), "v": leaf(3, 4)}
    h = F.linear(x, params["w"]).tanh()
    loss = classify(F.linear(h + F.linear(h, params["w"]).tanh(), params["v"]))
    assert way(loss, params, monkeypatch) is not ForwardOverReverse


def test_so_are_outputs_used_twice(monkeypatch):
    """Hooks on them could not be seen."""
    x, params = rand(6, 4), {"w": leaf(4, 4)}
    z = F.linear(x, params["w"])
    loss = z.square().mean() + z.exp().mean()
    assert way(loss, params, monkeypatch) is not ForwardOverReverse


def test_the_reference_is_autograd(monkeypatch):
    network = mlp(8, 6, 3)
    params = network.to(torch.float32)
    assert way(network.loss(params), params, monkeypatch, "reference") is DoubleBackward


def both_ways(make_loss, params, **kwargs):
    """The fast way and autograd's, with the same probes."""
    return [
        hessian_trace(make_loss(), params, n_samples=3, backend=backend, **kwargs)
        for backend in ("auto", "reference")
    ]


def assert_agree(make_loss, params, tolerance=1e-9):
    fast, slow = both_ways(make_loss, params)
    scale = max(map(abs, slow.per_parameter.values()))
    assert fast.value == pytest.approx(slow.value, abs=tolerance * scale)
    assert fast.per_parameter == pytest.approx(slow.per_parameter, abs=tolerance * scale)
    assert fast.per_parameter_stderr == pytest.approx(
        slow.per_parameter_stderr, abs=tolerance * scale
    )


OTHER_PRECISIONS = {
    "log-softmax": lambda z: F.nll_loss(
        z.log_softmax(-1, dtype=torch.float32), torch.arange(6) % 3
    ),
    "a factor": lambda z: (z.float() * torch.arange(1, 4).double()).sigmoid().log().mean(),
    "a divisor": lambda z: (z.float() / torch.arange(1, 4).double()).exp().mean(),
}


@pytest.mark.parametrize("head", OTHER_PRECISIONS)
def test_a_step_into_another_precision_is_left_to_autograd(head):
    x, w, v = rand(6, 4), leaf(5, 4), leaf(3, 5)
    assert_agree(
        lambda: OTHER_PRECISIONS[head](F.linear(F.linear(x, w).tanh(), v)), [w, v], tolerance=1e-5
    )


def test_what_is_added_to_a_product_may_depend_on_parameters():
    """A recurrent cell by addmm, and a bias that a network makes."""
    x, w, u, v = rand(5, 5).requires_grad_(), leaf(5, 5), leaf(5, 5), leaf(1, 5)
    assert_agree(lambda: torch.addmm(F.linear(x, u), x, w.t()).tanh().exp().mean(), [w, u])
    h = rand(5, 5)
    assert_agree(
        lambda: torch.addmm(torch.addmm(h @ u, h, w).tanh() @ u, h, w).tanh().exp().mean(), [w, u]
    )
    assert_agree(lambda: F.linear(x, w, F.linear(v, u)[0]).tanh().exp().mean(), [w, u, v])


def times(factor):
    return lambda gradient: factor * gradient


@pytest.mark.parametrize(
    "where", ["first output", "activation", "logits", "log-probabilities", "node", "node, before"]
)
@pytest.mark.parametrize("curved", [False, True], ids=["nll", "squared error"])
def test_hooks_that_change_gradients_are_left_to_autograd(where, curved, monkeypatch):
    """Wherever on the way they sit: rules do not call them."""
    x, w, v = rand(6, 4), leaf(5, 4), leaf(3, 5)

    def loss(hooked=True):
        z = F.linear(x, w)
        a = z.tanh()
        y = F.linear(a, v)
        p = y.log_softmax(-1)
        tensors = {"first output": z, "activation": a, "logits": y, "log-probabilities": p}
        if hooked and where in tensors:
            tensors[where].register_hook(times(3))
        elif hooked and where == "node":
            a.grad_fn.register_hook(lambda sent, _: tuple(3 * g for g in sent))
        elif hooked:
            a.grad_fn.register_prehook(lambda arrived: tuple(3 * g for g in arrived))
        return p.square().mean() if curved else F.nll_loss(p, torch.arange(6) % 3)

    assert_agree(loss, [w, v])
    assert way(loss(), [w, v], monkeypatch) is not ForwardOverReverse
    monkeypatch.undo()
    assert way(loss(hooked=False), [w, v], monkeypatch) is ForwardOverReverse


def test_hooks_that_only_look_cost_nothing(monkeypatch):
    x, w, v, seen = rand(6, 4), leaf(5, 4), leaf(3, 5), []
    a = F.linear(x, w).tanh()
    a.register_hook(seen.append)
    assert way(classify(F.linear(a, v)), [w, v], monkeypatch) is ForwardOverReverse
    assert seen


@pytest.mark.parametrize("rows", [(32, 1), (1, 32)])
def test_one_weight_for_a_large_and_a_small_batch(rows, monkeypatch):
    w, v = (torch.randn(64, 64, requires_grad=True) for _ in range(2))
    first, second = (torch.randn(n, 64) for n in rows)

    def loss():
        one, other = (F.linear(F.linear(x, w).tanh(), v) for x in (first, second))
        return one.square().mean() + other.exp().mean()

    assert way(loss(), [w, v], monkeypatch) is ForwardOverReverse
    assert_agree(loss, [w, v], tolerance=1e-4)


def test_sparse_inputs_are_left_to_autograd():
    x, w, v = (rand(6, 4) * (rand(6, 4) > 0)).to_sparse(), leaf(4, 5), leaf(3, 5)
    assert_agree(lambda: F.linear(torch.mm(x, w).tanh(), v).exp().mean(), [w, v])


def test_a_recomputed_head():
    """Checkpointing above the last layer: what it recomputes must be recorded."""
    x, w, scale = rand(6, 4), leaf(5, 4), rand(5)

    def head(z):
        return ((scale * z).tanh() * z.sin()).exp()

    assert_agree(lambda: checkpoint(head, F.linear(x, w).tanh(), use_reentrant=False).mean(), [w])


def test_hooks_on_the_head_keep_usable_tensors():
    x, w = rand(6, 4), leaf(5, 4)
    z = F.linear(x, w)
    z.retain_grad()
    hessian_trace(z.exp().mean(), [w], n_samples=2)
    z.grad.zero_()


def test_a_head_that_cuts_a_gradient_off():
    class Cut(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x, y):
            return x + y

        @staticmethod
        def backward(ctx, gradient):
            return gradient, None

    x, w, u = rand(6, 4), leaf(5, 4), leaf(5, 4)
    make = lambda: Cut.apply(F.linear(x, w).tanh(), F.linear(x, u).tanh()).exp().mean()  # noqa: E731
    fast, slow = both_ways(make, [w, u])
    assert fast.per_parameter == pytest.approx(slow.per_parameter)


def test_no_curvature_has_no_error():
    """The last bias under a plain sum: known to be 0, also with one probe."""
    x, w, v, c = rand(6, 4), leaf(5, 4), leaf(3, 5), leaf(3)
    params = {"w": w, "v": v, "c": c}
    for backend in ("auto", "reference"):
        loss = F.linear(F.linear(x, w).tanh(), v, c).sum()
        estimate = hessian_trace(loss, params, backend=backend)
        assert (estimate.per_parameter["c"], estimate.per_parameter_stderr["c"]) == (0.0, 0.0)


def test_measured_inside_inference_mode():
    """A loss with a graph has its curvature wherever it is asked for."""
    x, w, v, k = rand(6, 4), leaf(5, 4), leaf(3, 5), leaf(2, 1, 3)
    losses = {
        "stack": lambda: classify(F.linear(F.linear(x, w).tanh(), v)),
        "convolution": lambda: F.conv1d(x[:, None], k).exp().mean(),
    }
    for make in losses.values():
        params = [w, v] if make is losses["stack"] else [k]
        for backend in ("auto", "reference"):
            loss = make()
            expected = hessian_trace(make(), params, n_samples=2, backend=backend)
            with torch.inference_mode():
                assert hessian_trace(loss, params, n_samples=2, backend=backend) == expected

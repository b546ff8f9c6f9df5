"""Graphs that cannot be differentiated twice: the error says what failed, why, and what to do; the cause is chained."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metacurv import NotTwiceDifferentiableError, hessian_trace
from tests.helpers import ESTIMATOR_BACKENDS
from tests.problems.linear_problems import LINEAR
from tests.problems.model_problems import GENERAL
from tests.problems.once_differentiable import OnceDifferentiable
from tests.problems.problem import build

pytestmark = pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)

PROBLEMS = {**GENERAL, **LINEAR}


def assert_explained(error):
    assert isinstance(error.__cause__, RuntimeError)
    assert str(error.__cause__) in str(error)
    assert "uncompiled model" in str(error)
    assert "SDPBackend.MATH" in str(error)


@pytest.mark.parametrize("curved", [True, False], ids=["curved loss", "linear loss"])
@pytest.mark.parametrize("layer", [True, False], ids=["beside a layer", "alone"])
def test_once_differentiable_functions(layer, curved, backend):
    """torch itself finds no curvature there and says nothing, if asked for the parameters alone."""
    w = torch.randn(3, 3, requires_grad=True)
    squares = OnceDifferentiable.apply(torch.randn(5, 3) @ w if layer else w)
    loss = (squares.square() if curved else squares).sum()
    with pytest.raises(NotTwiceDifferentiableError, match="once_differentiable") as caught:
        hessian_trace(loss, [w], backend=backend)
    assert "OnceDifferentiable" in str(caught.value)
    assert "finite_difference" in str(caught.value)
    loss.backward()  # the graph is still good for one derivative
    assert w.grad is not None


def test_a_once_differentiable_function_before_the_parameters_is_no_hindrance(backend):
    """Only the way from the loss to the parameters counts."""
    w = torch.randn(3, 3, requires_grad=True)
    x = OnceDifferentiable.apply(torch.randn(5, 3, requires_grad=True))
    estimate = hessian_trace((x @ w).square().sum(), [w], n_samples=2, backend=backend)
    expected = hessian_trace((x.detach() @ w).square().sum(), [w], n_samples=2, backend=backend)
    assert estimate.value == pytest.approx(expected.value, rel=1e-5)


def test_compiled_models(backend):
    """torch's words depend on whether the compiled graph donates its buffers; ours do not."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    compiled = torch.compile(model, backend="aot_eager")
    loss = F.cross_entropy(compiled(torch.randn(5, 3)), torch.arange(5) % 2)
    with pytest.raises(
        NotTwiceDifferentiableError, match=r"double backward|create_graph=False"
    ) as caught:
        hessian_trace(loss, model.parameters(), backend=backend)
    assert_explained(caught.value)
    loss.backward()
    assert model[0].weight.grad is not None


def test_fused_attention(backend):
    qkv = torch.randn(3, 1, 2, 4, 8, requires_grad=True)
    with nn.attention.sdpa_kernel(nn.attention.SDPBackend.FLASH_ATTENTION):
        loss = F.scaled_dot_product_attention(*qkv).square().sum()
    with pytest.raises(NotTwiceDifferentiableError, match="flash_attention") as caught:
        hessian_trace(loss, [qkv], backend=backend)
    assert_explained(caught.value)


def test_the_error_is_a_runtime_error(backend):
    assert issubclass(NotTwiceDifferentiableError, RuntimeError)


@pytest.mark.parametrize(
    "name", ["inputs_2d", "without_bias", "mlp_relu", "a_penalty_alone", "conv2d_net"]
)
def test_a_graph_that_is_gone(name, backend):
    problem = build(PROBLEMS[name])
    loss = problem.loss(problem.params)
    loss.backward()
    before = {n: p.grad.clone() for n, p in problem.live.items() if p.grad is not None}
    with pytest.raises(ValueError, match=r"loss.* freed: measure curvature before loss.backward"):
        hessian_trace(loss, problem.params, backend=backend)
    for name, gradient in before.items():
        assert torch.equal(problem.params[name].grad, gradient)


def test_a_parameter_changed_since(backend):
    """An optimizer step between forward and measuring; autograd's own complaint is chained."""
    problem = build(LINEAR["inputs_2d"])
    loss = problem.loss(problem.params)
    with torch.no_grad():
        problem.params["v"].add_(1.0)
    with pytest.raises(ValueError, match="modified in place after the forward pass") as caught:
        hessian_trace(loss, problem.params, backend=backend)
    assert "modified by an inplace operation" in str(caught.value.__cause__)


def test_a_backward_hook_of_a_module_warns(backend):
    """It changes the gradient, so the trace is another one; nobody can take it out of a graph."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    model[1].register_full_backward_hook(lambda module, into, out: tuple(3 * g for g in into))
    loss = F.cross_entropy(model(torch.randn(5, 3)), torch.arange(5) % 2)
    with pytest.warns(UserWarning, match="full backward hook of a module stands in the graph"):
        hessian_trace(loss, model.parameters(), backend=backend)

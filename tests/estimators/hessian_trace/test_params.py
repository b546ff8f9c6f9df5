"""What hessian_trace takes as parameters: forms, names, numbering, frozen, repeated and non-leaf ones."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metacurv import hessian_trace
from tests.helpers import ESTIMATOR_BACKENDS, TOLERANCE
from tests.problems.linear_problems import LINEAR
from tests.problems.model_problems import GENERAL
from tests.problems.problem import Problem, build, func_hessian, leaf, rand
from tests.problems.samples import DENSE_TOLERANCE, assert_matches, dense_samples

pytestmark = pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)


def check(problem, params, backend, *, numbers=None):
    """``params`` is a way to write ``problem.params``; ``numbers``: the names and order it implies."""
    names = numbers or list(problem.params)
    renamed = Problem(
        dict(zip(names, problem.params.values(), strict=True)),
        lambda p: problem.loss(dict(zip(problem.params, p.values(), strict=True))),
    )
    hessian = func_hessian(problem)
    estimate = hessian_trace(
        problem.loss(problem.params), params, n_samples=2, seed=3, backend=backend
    )
    samples = dense_samples(renamed, hessian, probes=2, seed=3)
    assert_matches(estimate, samples, DENSE_TOLERANCE)
    return estimate


@pytest.mark.parametrize(
    ("write", "named"),
    [
        pytest.param(lambda p: dict(p), True, id="mapping"),
        pytest.param(lambda p: p.items(), True, id="items"),
        pytest.param(lambda p: list(p.items()), True, id="pairs"),
        pytest.param(lambda p: iter(p.items()), True, id="iterator of pairs"),
        pytest.param(lambda p: list(p.values()), False, id="list"),
        pytest.param(lambda p: tuple(p.values()), False, id="tuple"),
        pytest.param(lambda p: (t for t in p.values()), False, id="generator"),
    ],
)
def test_forms(write, named, backend):
    problem = build(LINEAR["inputs_2d"])
    positions = [str(i) for i in range(len(problem.params))]
    check(problem, write(problem.params), backend, numbers=None if named else positions)


def test_a_module_by_its_parameters(backend):
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2))
    loss = F.cross_entropy(module(torch.randn(5, 3)), torch.arange(5) % 2)
    named = hessian_trace(loss, module.named_parameters(), n_samples=3, backend=backend)
    plain = hessian_trace(loss, module.parameters(), n_samples=3, backend=backend)
    assert list(named.per_parameter) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(plain.per_parameter) == ["0", "1", "2", "3"]
    assert named.value == plain.value
    assert named.stderr == plain.stderr


def test_some_of_the_parameters(backend):
    """What is not listed is a constant of the loss."""
    problem = build(LINEAR["inputs_2d"])
    for chosen in (["w"], ["b"], ["c"], ["v", "b"], ["c", "w"]):
        some = {name: problem.params[name] for name in chosen}
        rest = {name: p.detach() for name, p in problem.params.items() if name not in chosen}
        part = Problem(some, lambda p, rest=rest: problem.loss({**rest, **p}))
        estimate = hessian_trace(
            problem.loss(problem.params), some, n_samples=2, seed=3, backend=backend
        )
        samples = dense_samples(part, func_hessian(part), probes=2, seed=3)
        assert_matches(estimate, samples, DENSE_TOLERANCE)


def test_order_is_numbering(backend):
    """The same parameters in another order get other signs, and the same trace on average."""
    problem = build(LINEAR["inputs_2d"])
    reordered = Problem(dict(reversed(problem.params.items())), problem.loss)
    check(reordered, reordered.params, backend)


def test_frozen_parameters_keep_their_number_and_are_left_out(backend):
    problem = build(GENERAL["with_frozen_parameters"])
    estimate = check(problem, problem.params, backend)
    assert list(estimate.per_parameter) == ["w", "v"]


@pytest.mark.parametrize("name", list(build(LINEAR["residual"]).params))
def test_any_one_parameter_frozen(name, backend):
    problem = build(LINEAR["residual"])
    problem.params[name].requires_grad_(False)
    check(problem, problem.params, backend)


@pytest.mark.parametrize("name", list(build(LINEAR["residual"]).params))
def test_any_one_parameter_alone(name, backend):
    problem = build(LINEAR["residual"])
    for other, parameter in problem.params.items():
        parameter.requires_grad_(other == name)
    check(problem, problem.params, backend)


def test_repeated_parameters_count_once_under_their_first_name(backend):
    problem = build(LINEAR["inputs_2d"])
    w, b, v, c = problem.params.values()
    once = hessian_trace(
        problem.loss(problem.params), [w, b, v, c], n_samples=2, seed=3, backend=backend
    )
    twice = hessian_trace(
        problem.loss(problem.params), [w, b, v, c, b, w], n_samples=2, seed=3, backend=backend
    )
    assert once == twice
    named = hessian_trace(
        problem.loss(problem.params),
        [("w", w), ("again", w), ("b", b)],
        n_samples=2,
        seed=3,
        backend=backend,
    )
    assert list(named.per_parameter) == ["w", "b"]


def test_unused_parameters_have_no_curvature(backend):
    problem = build(GENERAL["with_an_unused_parameter"])
    estimate = check(problem, problem.params, backend)
    assert estimate.per_parameter["unused"] == estimate.per_parameter["too"] == 0
    assert estimate.per_parameter_stderr["unused"] == 0


def test_a_constant_gradient_means_no_curvature(backend):
    problem = build(GENERAL["linear_in_the_parameters"])
    estimate = hessian_trace(
        problem.loss(problem.params), problem.params, n_samples=4, backend=backend
    )
    assert (estimate.value, estimate.stderr) == (0.0, 0.0)
    assert estimate.per_parameter == {"w": 0.0, "b": 0.0}


def test_a_linear_model_with_a_linear_loss_has_no_curvature(backend):
    """Its layer stands in the graph, but nothing bends."""
    x = rand(4, 3)
    problem = Problem({"w": leaf(2, 3), "b": leaf(2)}, lambda p: F.linear(x, p["w"], p["b"]).sum())
    estimate = hessian_trace(
        problem.loss(problem.params), problem.params, n_samples=4, backend=backend
    )
    assert (estimate.value, estimate.stderr) == (0.0, 0.0)


def test_tensors_that_are_not_leaves(backend):
    """Curvature in an activation: loss as a function of h, whatever h was made from."""
    x, w, v = rand(4, 3), leaf(5, 3), leaf(2, 5)
    h = F.linear(x, w).tanh()
    estimate = hessian_trace(
        F.linear(h, v).exp().sum(), {"h": h}, n_samples=2, seed=3, backend=backend
    )
    problem = Problem(
        {"h": h.detach().requires_grad_()}, lambda p: F.linear(p["h"], v.detach()).exp().sum()
    )
    samples = dense_samples(problem, func_hessian(problem), probes=2, seed=3)
    assert_matches(estimate, samples, DENSE_TOLERANCE)


@pytest.mark.parametrize("dtypes", [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_parameters_of_several_dtypes(dtypes, backend):
    """One float32 and one float64 layer, in either order: signs do not depend on the dtype."""
    x = rand(6, 4)

    def loss(p):
        h = F.linear(x.to(p["w"].dtype), p["w"], p["b"]).tanh()
        return F.linear(h.to(p["v"].dtype), p["v"]).square().mean().double()

    exact = Problem({"w": leaf(5, 4), "b": leaf(5), "v": leaf(3, 5)}, loss)
    params = {
        name: exact.params[name].detach().to(dtype).requires_grad_()
        for name, dtype in zip(("w", "b", "v"), (dtypes[0], dtypes[0], dtypes[1]), strict=True)
    }
    estimate = hessian_trace(loss(params), params, n_samples=3, seed=3, backend=backend)
    rounded = Problem(
        {name: p.detach().double().requires_grad_() for name, p in params.items()}, loss
    )
    samples = dense_samples(rounded, func_hessian(rounded), probes=3, seed=3)
    assert_matches(estimate, samples, TOLERANCE[torch.float32])


def test_bfloat16_parameters(backend):
    """A product through two layers keeps about two digits of the sum of its terms' magnitudes."""
    x = rand(6, 4).bfloat16()

    def loss(p):
        h = F.linear(x.to(p["w"].dtype), p["w"], p["b"]).tanh()
        return F.linear(h, p["v"]).square().mean()

    rough = {"w": leaf(5, 4), "b": leaf(5), "v": leaf(3, 5)}
    rough = {name: p.detach().bfloat16().requires_grad_() for name, p in rough.items()}
    exact = Problem({n: p.detach().double().requires_grad_() for n, p in rough.items()}, loss)
    estimate = hessian_trace(loss(rough), rough, n_samples=3, seed=3, backend=backend)
    samples = dense_samples(exact, func_hessian(exact), probes=3, seed=3)
    assert_matches(estimate, samples, TOLERANCE[torch.bfloat16])

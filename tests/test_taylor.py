"""Samples of K probes at once by second-order forward mode: right, probe by probe, and refused where rules do not serve."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metacurv.estimators import taylor, taylor_rules
from metacurv.estimators.errors import NotApplicable
from metacurv.estimators.graph import LossGraph
from metacurv.estimators.hutchinson import trace_of_loss
from metacurv.estimators.linear_uses import find_linear_uses
from metacurv.estimators.parameters import number_parameters
from metacurv.estimators.tangent_plan import plan_tangents
from metacurv.estimators.taylor import Taylor, taylor_of_steps
from tests.model_problems import GENERAL
from tests.networks import mlp
from tests.problems import Problem, build, classify, dense_hessian, leaf, rand
from tests.stack_problems import STACKS, three_layers
from tests.truth import DENSE_TOLERANCE, dense_samples

SEED = 3
MODULES = ["mlp_relu", "mlp_tanh", "mlp_gelu", "mlp_softplus_without_bias", "regression"]
PROBLEMS = {**STACKS, **{name: GENERAL[name] for name in MODULES}}


def prepare(loss, params, backend="auto"):
    parameters = number_parameters(params)
    graph = LossGraph(loss.grad_fn)
    start = torch.ones_like(loss, requires_grad=True) if graph.has_python_functions else None
    with torch.no_grad():
        steps = plan_tangents(graph, parameters, find_linear_uses(graph, parameters), backend)
    if steps is None:
        raise NotApplicable
    return taylor_of_steps(loss, parameters, steps, start=start, backend=backend)


def samples(loss, params, n_samples=5, *, first_probe=0, seed=SEED, backend="auto"):
    return prepare(loss, params, backend).samples(
        seed=seed, first_probe=first_probe, n_samples=n_samples
    )


def assert_close(found, expected, error):
    torch.testing.assert_close(found, torch.as_tensor(expected), rtol=0, atol=error)


# Layers with few columns are pushed transposed: all of them, those of the last layer only, none.
@pytest.mark.parametrize("fewest_columns", [16, 4, 0])
@pytest.mark.parametrize("name", PROBLEMS)
def test_samples_are_those_of_the_dense_hessian(name, fewest_columns, monkeypatch):
    monkeypatch.setattr(taylor_rules, "_FEWEST_COLUMNS", fewest_columns)
    problem = build(PROBLEMS[name])
    truth = dense_samples(problem, dense_hessian(problem), probes=5, seed=SEED)
    found = samples(problem.loss(problem.params), problem.params)
    assert found.dtype == torch.float64
    assert_close(found, truth.totals, DENSE_TOLERANCE * truth.scale)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_and_those_that_a_trace_averages(name, backend):
    problem = build(PROBLEMS[name])
    expected = [
        trace_of_loss(
            problem.loss(problem.params),
            number_parameters(problem.params),
            seed=SEED,
            first_probe=probe,
            n_samples=1,
            backend=backend,
        ).trace
        for probe in range(4)
    ]
    found = samples(problem.loss(problem.params), problem.params, 4, backend=backend)
    assert_close(found, torch.stack(expected), 1e-12 * max(map(abs, expected)))


@pytest.fixture
def chunks(monkeypatch):
    """How many probes there were memory for, each time."""
    taken = []
    make = taylor.Probes

    def note(*args, k, **kwargs):
        taken.append(k)
        return make(*args, k=k, **kwargs)

    monkeypatch.setattr(taylor, "Probes", note)
    return taken


def test_sixteen_probes_go_at_once(chunks):
    problem = build(STACKS["tanh"])
    samples(problem.loss(problem.params), problem.params, 16)
    assert chunks == [16]


@pytest.mark.parametrize(
    ("chunk", "elements", "expected"),
    [(3, 1 << 24, [3, 1]), (16, 1, [1]), (16, 3 * (2 * 6 * 5 + 68), [3, 1])],
    ids=["probes", "no memory", "little memory"],
)
@pytest.mark.parametrize("name", ["tanh", "two towers", "squared error"])
def test_chunks_do_not_change_samples(name, chunk, elements, expected, chunks, monkeypatch):
    problem = build(STACKS[name])
    whole = samples(problem.loss(problem.params), problem.params, 7)
    chunks.clear()
    monkeypatch.setattr(Taylor, "chunk", chunk)
    monkeypatch.setattr(Taylor, "chunk_elements", elements)
    found = samples(problem.loss(problem.params), problem.params, 7)
    assert_close(found, whole, 1e-12 * float(whole.abs().max()))
    if name != "two towers":
        assert chunks == expected


def test_probes_are_counted_from_the_first():
    problem = build(STACKS["tanh"])
    one = prepare(problem.loss(problem.params), problem.params)
    whole = one.samples(seed=SEED, first_probe=0, n_samples=6)
    error = 1e-12 * float(whole.abs().max())
    assert_close(one.samples(seed=SEED, first_probe=2, n_samples=4), whole[2:], error)
    assert_close(one.samples(seed=SEED, first_probe=0, n_samples=6), whole, error)
    for other in (SEED + 1, 2**64 - 1):
        assert not torch.allclose(one.samples(seed=other, first_probe=0, n_samples=6), whole)
    # The last number and, after it, the first.
    around = one.samples(seed=SEED, first_probe=2**32 - 1, n_samples=2)
    assert_close(around[1:], whole[:1], error)


@pytest.mark.parametrize("name", ["relu", "tanh", "squared error", "two towers"])
def test_nothing_is_left_behind(name):
    problem = build(STACKS[name])
    leaves = list(problem.params.values())
    expected = torch.autograd.grad(problem.loss(problem.params), leaves)
    loss = problem.loss(problem.params)
    state, versions = torch.get_rng_state(), [p._version for p in leaves]
    first = samples(loss, problem.params)
    assert torch.equal(samples(loss, problem.params), first)
    assert not first.requires_grad
    assert not first.is_inference()
    assert all(p.grad is None for p in leaves)
    assert [p._version for p in leaves] == versions
    assert torch.equal(torch.get_rng_state(), state)
    loss.backward()
    for p, gradient in zip(leaves, expected, strict=True):
        assert torch.equal(p.grad, gradient)


@pytest.mark.parametrize("activation", [torch.relu, torch.tanh])
def test_single_precision(activation):
    network = mlp(30, 40, 40, 10, rows=50, activation=activation)
    wide = network.to(torch.float64)
    expected = samples(network.loss(wide), wide, 16)
    narrow = network.to(torch.float32)
    found = samples(network.loss(narrow), narrow, 16)
    assert_close(found, expected, 1e-5 * float(expected.square().mean().sqrt()))


def test_one_chain_does_not_overwrite_another():
    """Two chains of two layers each, whose tangents meet in the head."""

    def make():
        x, y = rand(6, 4), rand(6, 3)
        params = {"w": leaf(5, 4), "u": leaf(2, 5), "v": leaf(5, 3), "t": leaf(2, 5)}

        def loss(p):
            one = F.linear(F.linear(x, p["w"]).tanh(), p["u"])
            return (one * F.linear(F.linear(y, p["v"]).tanh(), p["t"])).sum(1).sigmoid().mean()

        return Problem(params, loss)

    problem = build(make)
    truth = dense_samples(problem, dense_hessian(problem), probes=5, seed=SEED)
    found = samples(problem.loss(problem.params), problem.params)
    assert_close(found, truth.totals, DENSE_TOLERANCE * truth.scale)


def test_logits_that_move_together_do_not_cancel():
    """A shift of all logits has no curvature, however large: single precision keeps its digits."""
    x, w = rand(6, 4).float(), leaf(5, 4)
    mix = (rand(3, 5) + 100).float()  # a frozen layer

    def of(dtype):
        weight = w.detach().float().to(dtype).requires_grad_()
        logits = F.linear(F.linear(x.to(dtype), weight), mix.to(dtype))
        return samples(classify(logits), {"w": weight})

    expected = of(torch.float64)
    assert_close(of(torch.float32), expected, 2e-4 * float(expected.abs().max()))


def test_no_curvature_is_exactly_zero():
    x, w, c = rand(6, 4), leaf(3, 4), leaf(3)
    found = samples(F.linear(x, w, c).relu().sum(), {"w": w, "c": c})
    assert torch.equal(found, torch.zeros(5, dtype=torch.float64))


@pytest.mark.parametrize(
    "name",
    ["attention", "multihead_attention_module", "embedding_tied_to_the_output", "conv2d_net"],
)
def test_other_models_are_refused(name):
    problem = build(GENERAL[name])
    with pytest.raises(NotApplicable):
        prepare(problem.loss(problem.params), problem.params)


@pytest.mark.parametrize("where", ["activation", "node"])
def test_hooks_that_change_gradients_are_refused(where):
    x, w, v = rand(6, 4), leaf(5, 4), leaf(3, 5)
    a = F.linear(x, w).tanh()
    if where == "node":
        a.grad_fn.register_prehook(lambda arrived: tuple(3 * g for g in arrived))
    else:
        a.register_hook(lambda gradient: 3 * gradient)
    with pytest.raises(NotApplicable):
        prepare(classify(F.linear(a, v)), {"w": w, "v": v})


def test_towers_of_two_precisions_are_refused():
    x, w, u = rand(6, 4), leaf(5, 4), leaf(5, 4).detach().float().requires_grad_()
    loss = (F.linear(x, w).tanh() * F.linear(x.float(), u).tanh()).sum().exp()
    with pytest.raises(NotApplicable):
        prepare(loss, {"w": w, "u": u})


def test_hooks_that_only_look_change_nothing():
    seen = []

    def watched(z):
        a = z.tanh()
        a.register_hook(seen.append)
        return a

    problem, plain = build(lambda: three_layers(watched)), build(STACKS["tanh"])
    found = samples(problem.loss(problem.params), problem.params)
    assert torch.equal(found, samples(plain.loss(plain.params), plain.params))
    assert seen

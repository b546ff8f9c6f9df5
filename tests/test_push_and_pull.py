"""When a probe is pushed through rules and when not; that it is right is in test_hessian_trace, with all other problems."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from metacurv import hessian_trace
from metacurv.estimators import hutchinson
from metacurv.estimators.double_backward import DoubleBackward
from metacurv.estimators.forward_over_reverse import ForwardOverReverse
from metacurv.estimators.linear_factors import FactoredDoubleBackward
from tests.linear_problems import LINEAR
from tests.model_problems import GENERAL
from tests.networks import mlp
from tests.problems import build, classify, leaf, rand
from tests.stack_problems import STACKS


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


def test_the_reference_is_autograd(monkeypatch):
    network = mlp(8, 6, 3)
    params = network.to(torch.float32)
    assert way(network.loss(params), params, monkeypatch, "reference") is DoubleBackward


def penalized(rows):
    """A penalty on the first layer keeps autograd in charge; the second one's activations grow with ``rows``."""
    network = mlp(8, 64, 64, 3, rows=rows)
    params = network.to(torch.float32)
    return network.loss(params) + params["0.weight"].square().sum(), params


@pytest.mark.parametrize(("rows", "expected"), [(8, FactoredDoubleBackward), (800, DoubleBackward)])
def test_factors_are_for_layers_whose_weights_outweigh_their_activations(
    rows, expected, monkeypatch
):
    loss, params = penalized(rows)
    assert way(loss, params, monkeypatch) is expected

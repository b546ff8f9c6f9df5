"""Wrong arguments of estimate_trace: the error names the argument, what it needs and what it got; nothing has changed."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metacurv import estimate_trace
from metacurv.estimators.estimate_trace import Method
from metacurv.estimators.select.methods import METHODS as OBJECTS
from tests.estimators.dense.case import labels
from tests.helpers import assert_same
from tests.problems.problem import rand

NAN = float("nan")
METHODS = get_args(Method)


def network() -> nn.Sequential:
    """In train mode, with statistics and a gradient that a careless reading would change."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model.double()[0].weight.grad = torch.ones(4, 3, dtype=torch.float64)
    return model


def state(model: nn.Module) -> dict[str, Any]:
    """All of a model that a caller can see, and the random state."""
    return {
        "values": {name: x.detach().clone() for name, x in model.state_dict().items()},
        "gradients": {n: None if p.grad is None else p.grad.clone() for n, p in named(model)},
        "flags": {n: p.requires_grad for n, p in named(model)},
        "identity": {n: id(p) for n, p in named(model)},
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def named(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return list(model.named_parameters())


def refused(
    error: type[Exception], message: str, model: Any = None, **arguments: Any
) -> pytest.ExceptionInfo[Exception]:
    """Calls with everything right but ``arguments``."""
    model = network() if model is None else model
    call = {"loss_fn": F.cross_entropy, "inputs": rand(6, 3), "targets": labels(6), **arguments}
    before = state(model)
    with pytest.raises(error, match=message) as caught:
        estimate_trace(model, **call)
    assert_same(state(model), before)
    return caught


# Argument -> value -> (error, what its message says).
VALUES: dict[str, list[tuple[Any, type[Exception], str]]] = {
    "kind": [
        ("fisher", ValueError, "kind must be 'hessian' or 'ggn', got str 'fisher'"),
        (None, ValueError, "kind must be .* got NoneType"),
        (["ggn"], ValueError, "kind must be .* got list"),
    ],
    "method": [
        ("lanczos", ValueError, "method must be one of auto, exact, .* got str 'lanczos'"),
        (1, ValueError, "method must be one of .* got int 1"),
        (["exact"], ValueError, "method must be one of .* got list"),
    ],
    "n_samples": [
        (0, ValueError, "n_samples must be .* got 0"),
        (-1, ValueError, "n_samples must be .* got -1"),
        (1 << 32, ValueError, "n_samples must be .* got 4294967296"),
        (True, TypeError, "n_samples must be an integer .* got bool True"),
        (1.5, TypeError, "n_samples must be an integer .* got float 1.5"),
        ("2", TypeError, "n_samples must be an integer .* got str '2'"),
        (torch.tensor(2), TypeError, "n_samples must be an integer .* got a Tensor"),
    ],
    "rtol": [
        (0, ValueError, "rtol must be .* got 0"),
        (-0.1, ValueError, "rtol must be .* got -0.1"),
        (1, ValueError, "rtol must be .* got 1"),
        (NAN, ValueError, "rtol must be .* got nan"),
        (float("inf"), ValueError, "rtol must be .* got inf"),
        ("0.1", TypeError, "rtol must be .* got str '0.1'"),
        (True, TypeError, "rtol must be .* got bool True"),
    ],
    "max_samples": [
        (0, ValueError, "max_samples must be .* got 0"),
        (None, TypeError, "max_samples must be an integer .* got NoneType"),
        (1e4, TypeError, "max_samples must be an integer .* got float 10000.0"),
        (True, TypeError, "max_samples must be an integer .* got bool True"),
    ],
    "seed": [
        (-1, ValueError, "seed must be .* got -1"),
        (1 << 64, ValueError, "seed must be .* got 18446744073709551616"),
        (None, TypeError, "seed must be an integer .* got NoneType"),
        (False, TypeError, "seed must be an integer .* got bool False"),
    ],
    "max_memory": [
        (0, ValueError, "max_memory must be .* got 0"),
        (-5, ValueError, "max_memory must be .* got -5"),
        (1e9, TypeError, "max_memory must be an integer .* got float"),
        (None, TypeError, "max_memory must be an integer .* got NoneType"),
    ],
    "backend": [
        ("cuda", ValueError, "backend must be one of .* got str 'cuda'"),
        (None, ValueError, "backend must be one of .* got NoneType"),
    ],
}


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        pytest.param(name, *row, id=f"{name}={row[0]!r}")
        for name, rows in VALUES.items()
        for row in rows
    ],
)
def test_values(name, value, error, message):
    refused(error, message, **{name: value})


def test_fewer_samples_at_most_than_at_least():
    message = r"max_samples must be at least n_samples=20.* got 10"
    refused(ValueError, message, n_samples=20, max_samples=10, rtol=0.1)


@pytest.mark.parametrize("model", [None, F.relu, nn.Linear, [nn.Linear(2, 2)]])
def test_model_that_is_no_module(model):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got"):
        estimate_trace(model, F.cross_entropy, rand(6, 3), labels(6))


def test_a_data_set_is_no_batch():
    examples = torch.utils.data.TensorDataset(rand(6, 3), labels(6))
    refused(
        TypeError,
        r"inputs must be a batch .* got a data set \(TensorDataset\); DataLoader\(dataset",
        inputs=examples,
        targets=None,
    )


@pytest.mark.parametrize("loss_fn", ["mse", torch.tensor(1.0)])
def test_loss_that_is_not_callable(loss_fn):
    refused(TypeError, "loss_fn must be callable, got", loss_fn=loss_fn)


def test_targets_that_were_forgotten():
    model, x = nn.Linear(3, 2), torch.zeros(4, 3)
    for loss_fn in (nn.CrossEntropyLoss(), lambda out, y: F.mse_loss(out, y.flatten())):
        with pytest.raises(ValueError, match="targets must be given where inputs is one batch"):
            estimate_trace(model, loss_fn, x)
    assert estimate_trace(model, lambda out, _: out.square().sum(), x).value == 16  # of the bias
    with pytest.raises(AttributeError, match="no_such"):
        estimate_trace(model, lambda out, y: y.no_such(out), x, x)


def test_no_loss():
    refused(TypeError, "loss_fn must be given: .* got none", loss_fn=None)


# The message speaks of the argument that the caller passed: there is no ``params`` here.
MODELS: dict[str, tuple[Callable[[], nn.Module], type[Exception], str]] = {
    "frozen": (lambda: network().requires_grad_(False), ValueError, "model.*requires a gradient"),
    "without parameters": (lambda: nn.Sequential(nn.ReLU()), ValueError, "model.*parameter"),
    "complex": (lambda: nn.Linear(3, 3, dtype=torch.complex64), TypeError, "model.*complex64"),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_without_anything_to_measure(name):
    make, error, message = MODELS[name]
    refused(error, message, model=make())


def test_frozen_integers_are_left_alone():
    """Quantized weights, for instance: only parameters that require a gradient are measured."""
    model = nn.Linear(3, 3).double()
    whole = nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False)
    model.register_parameter("scales", whole)
    estimate = estimate_trace(model, F.cross_entropy, rand(6, 3), labels(6))
    assert list(estimate.per_parameter) == ["weight", "bias"]


@pytest.mark.parametrize("inputs", [[], iter(())])
def test_no_batches(inputs):
    refused(ValueError, "inputs must .* at least one batch, got none", inputs=inputs, targets=None)


@pytest.mark.parametrize(
    ("batch", "got"),
    [
        (torch.ones(2, 3), "a Tensor"),
        ((torch.ones(2, 3),), "tuple"),
        ([torch.ones(2, 3)] * 3, "list"),
        ({"inputs": 1, "targets": 2}, "dict"),
    ],
)
def test_batches_that_are_no_pairs(batch, got):
    message = rf"inputs must give \(inputs, targets\) pairs .* got {got}.* at 1"
    pair = (rand(4, 3), labels(4))
    refused(TypeError, message, inputs=[pair, batch], targets=None, n_samples=2)


def scaled(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda output, target: factor * F.cross_entropy(output, target)


# What is wrong with the loss -> (loss_fn, error, message).
LOSSES: dict[str, tuple[Callable[[Tensor, Tensor], Any], type[Exception], str]] = {
    "a vector": (
        lambda o, t: F.cross_entropy(o, t, reduction="none"),
        ValueError,
        r"loss must be a scalar, got shape \(6,\)",
    ),
    "a number": (lambda o, t: 3.0, TypeError, "loss must be a Tensor, got float 3.0"),
    "None": (lambda o, t: None, TypeError, "loss must be a Tensor, got NoneType"),
    "detached": (
        lambda o, t: F.cross_entropy(o, t).detach(),
        ValueError,
        "loss must carry a graph.* got a detached tensor",
    ),
    "nan": (scaled(NAN), ValueError, "loss must be finite, got nan"),
    "inf": (scaled(float("inf")), ValueError, "loss must be finite, got inf"),
    "complex": (lambda o, t: (o * 1j).sum(), TypeError, "loss must be float.* got torch.complex"),
    "independent": (
        lambda o, t: torch.ones(2, requires_grad=True).square().sum(),
        ValueError,
        "loss must depend on",
    ),
}


def test_every_method_has_a_name_in_the_signature():
    assert ("auto", *OBJECTS) == METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, method):
    """By every method that looks at the loss at all: one that refuses the model names itself."""
    loss_fn, error, message = LOSSES[name]
    caught = refused(
        (error, ValueError), f"{message}|method=", loss_fn=loss_fn, method=method, n_samples=2
    )
    if method in ("auto", "hutchinson", "finite_difference"):
        assert re.search(message, str(caught.value))


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("inputs", [rand(6, 4), (rand(6, 3), rand(6, 3)), {"y": rand(6, 3)}])
def test_what_the_model_says_comes_through(inputs, kind):
    """Its own error, not one about curvature."""
    refused((RuntimeError, TypeError), "shapes|argument", inputs=inputs, kind=kind)

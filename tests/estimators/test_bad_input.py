"""Wrong input to hessian_trace: the error names the argument, what it needs and what it got; nothing has changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from metacurv import hessian_trace
from tests.helpers import ESTIMATOR_BACKENDS
from tests.problems.bad_losses import INF, LOSSES, NAN, weight


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
@pytest.mark.parametrize("case", LOSSES)
def test_losses(case, backend):
    make, error, message = LOSSES[case]
    w = weight()
    before = w.detach().clone()
    loss = make(w)
    with pytest.raises(error, match=message):
        hessian_trace(loss, [w], backend=backend)
    assert torch.equal(w, before)
    assert w.grad is None


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
@pytest.mark.parametrize("linear", [True, False], ids=["beside a layer", "alone"])
@pytest.mark.parametrize("bad", [NAN, INF])
def test_inputs_that_are_not_finite(bad, linear, backend):
    w = weight()
    x = torch.tensor([[1.0, bad, 1.0]])
    out = x @ w.t() if linear else (x * w).sum(1)
    with pytest.raises(ValueError, match="loss must be finite"):
        hessian_trace(out.square().sum(), [w], backend=backend)


# What is wrong with the parameters -> (parameters from a good one, error, message).
PARAMETERS = {
    "None": (lambda w: None, TypeError, "params must be an iterable.* got NoneType None"),
    "a number": (lambda w: 3, TypeError, "params must be an iterable.* got int 3"),
    "one tensor": (lambda w: w, TypeError, "params must be an iterable.* got a Tensor"),
    "a module": (
        lambda w: nn.Linear(3, 1),
        TypeError,
        r"params must be an iterable.* got Linear Linear\(.*; pass its parameters\(\)",
    ),
    "a container": (
        lambda w: nn.Sequential(nn.Linear(3, 1), nn.ReLU()),
        TypeError,
        r"params must be an iterable.* got Sequential Sequential\(\.\.\.; pass its parameters\(\)",
    ),
    "a generator that was used up": (
        lambda w: iter(()),
        ValueError,
        "a generator that was used up",
    ),
    "empty": (lambda w: [], ValueError, "params must hold at least one parameter, got none"),
    "an empty mapping": (lambda w: {}, ValueError, "params must hold at least one parameter"),
    "frozen": (
        lambda w: [torch.ones(3), torch.ones(2)],
        ValueError,
        "params must hold a parameter that requires a gradient, got 2 frozen",
    ),
    "a list of modules": (
        lambda w: [nn.Linear(2, 2)],
        TypeError,
        r"params\['0'\] must be a Tensor",
    ),
    "a string": (lambda w: "abc", TypeError, r"params\['0'\] must be a Tensor, got str 'a'"),
    "numbers": (lambda w: [w, 3.0], TypeError, r"params\['1'\] must be a Tensor, got float 3.0"),
    "pairs the wrong way round": (
        lambda w: [(w, "w")],
        TypeError,
        r"params\['0'\] must be a Tensor",
    ),
    "named numbers": (lambda w: {"a": w, "b": 1}, TypeError, r"params\['b'\] must be a Tensor"),
    "integers": (
        lambda w: {"w": w, "steps": torch.ones(3, dtype=torch.int64)},
        TypeError,
        r"params\['steps'\] must be float32.* got torch.int64",
    ),
    "booleans": (lambda w: [w, torch.ones(2, dtype=torch.bool)], TypeError, r"params\['1'\].*bool"),
    "complex": (
        lambda w: [w, torch.ones(2, dtype=torch.complex64, requires_grad=True)],
        TypeError,
        r"params\['1'\] must be float32.* got torch.complex64",
    ),
    "sparse": (
        lambda w: [w, torch.eye(2).to_sparse().requires_grad_()],
        TypeError,
        r"params\['1'\] must be a dense .*got layout torch.sparse_coo",
    ),
    "on two devices": (
        lambda w: [w, torch.ones(2, device="meta", requires_grad=True)],
        ValueError,
        "params must be on one device, got cpu and .*meta",
    ),
    "of one name": (
        lambda w: [("w", w), ("w", torch.ones(2, requires_grad=True))],
        ValueError,
        r"params must have distinct names, got \['w', 'w'\]",
    ),
}


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
@pytest.mark.parametrize("case", PARAMETERS)
def test_parameters(case, backend):
    make, error, message = PARAMETERS[case]
    w = weight()
    loss = (w**3).sum()
    with pytest.raises(error, match=message):
        hessian_trace(loss, make(w), backend=backend)
    assert w.grad is None
    loss.backward()


NUMBERS = [
    ("n_samples", 0, ValueError),
    ("n_samples", -3, ValueError),
    ("n_samples", 2**32, ValueError),
    ("n_samples", 2.0, TypeError),
    ("n_samples", True, TypeError),
    ("n_samples", "4", TypeError),
    ("n_samples", None, TypeError),
    ("seed", -1, ValueError),
    ("seed", 2**64, ValueError),
    ("seed", 0.0, TypeError),
    ("seed", False, TypeError),
    ("seed", None, TypeError),
    ("seed", torch.Generator(), TypeError),
    ("backend", "cuda", ValueError),
    ("backend", None, ValueError),
    ("backend", 3, ValueError),
    ("backend", ["native"], ValueError),
]


@pytest.mark.parametrize(("argument", "value", "error"), NUMBERS)
def test_numbers_and_names(argument, value, error):
    w = weight()
    with pytest.raises(error, match=f"{argument} must be .*, got "):
        hessian_trace((w**3).sum(), [w], **{argument: value})
    assert w.grad is None


def test_arguments_are_named():
    w = weight()
    with pytest.raises(TypeError):
        hessian_trace((w**3).sum(), [w], 4)


def test_losses_without_a_value():
    w = torch.ones(3, device="meta", requires_grad=True)
    with pytest.raises(ValueError, match="loss must hold a value, got a tensor on the meta device"):
        hessian_trace(w.square().sum(), [w])


def test_a_loss_that_is_a_parameter():
    w = torch.ones((), requires_grad=True)
    with pytest.raises(ValueError, match=r"loss must carry a graph .* got a leaf"):
        hessian_trace(w, [w])

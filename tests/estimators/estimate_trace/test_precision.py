"""estimate_trace in lower precision: bfloat16 and float16 parameters, autocast, and numbers that overflow."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metacurv import TraceEstimate, estimate_trace
from metacurv.estimators.select.methods import METHODS
from tests.estimators.dense.case import Case, build, general
from tests.estimators.dense.truth import Truth, dense_truth
from tests.problems.problem import rand

ALL = ("auto", *METHODS)
# Of the trace, beyond sampling: 8 and 11 bits, of which a few operations lose some.
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.04, torch.float16: 0.005}
networks = pytest.mark.parametrize(
    ("dtype", "activation"),
    [(torch.bfloat16, nn.ReLU), (torch.bfloat16, nn.Tanh), (torch.float16, nn.Tanh)],
)
kinds = pytest.mark.parametrize("kind", ["hessian", "ggn"])
methods = pytest.mark.parametrize("method", ALL)


def reading(model: nn.Module, inputs: Tensor, case: Case, **options: Any) -> TraceEstimate | None:
    """None where a method by name refuses."""
    try:
        return estimate_trace(
            model, case.loss_fn, inputs, case.targets, n_samples=64, seed=3, **options
        )
    except ValueError as refusal:
        if options["method"] == "auto" or "method" not in str(refusal):
            raise
    return None


def close(estimate: TraceEstimate | None, truth: Truth, tolerance: float) -> None:
    if estimate is None:
        return
    expected = truth.trace(estimate.kind)
    rounding = tolerance * truth.scale / 2
    assert abs(estimate.value - expected) <= 4 * estimate.stderr + rounding
    for name, part in truth.per_layer(estimate.kind).items():
        error = 5 * estimate.per_layer_stderr[name] + rounding
        assert abs(estimate.per_layer[name] - part) <= error, name


def perceptron(activation: Callable[[], nn.Module]) -> Case:
    layers = [nn.Linear(3, 5), activation(), nn.Linear(5, 3)]
    return build(lambda: general(nn.Sequential(*layers), rand(8, 3)), seed=3)


@networks
@kinds
@methods
def test_parameters(method, kind, dtype, activation):
    """The truth is that of the rounded parameters and inputs."""
    case = perceptron(activation)
    case.model.to(dtype)
    inputs = case.inputs.to(dtype)
    exact = Case(copy.deepcopy(case.model).double(), case.loss_fn, inputs.double(), case.targets)
    tolerance = TOLERANCE[dtype] * (5 if method == "finite_difference" else 1)
    estimate = reading(case.model, inputs, case, method=method, kind=kind)
    close(estimate, dense_truth(exact), tolerance)
    assert all(p.dtype == dtype for p in case.model.parameters())


def test_sums_are_wider_than_bfloat16():
    """2000 samples of the same size: a bfloat16 sum of them stops growing at 256."""
    model = nn.Linear(1, 1, dtype=torch.bfloat16)
    x = torch.ones(2000, 1, dtype=torch.bfloat16)
    # H = 2 [[sum x^2, sum x], [sum x, N]].
    for method in ("exact", "activation"):
        estimate = estimate_trace(
            model,
            nn.MSELoss(reduction="sum"),
            x,
            torch.zeros_like(x),
            method=method,
            n_samples=1000,
        )
        assert abs(estimate.value - 8000) <= 4 * estimate.stderr + 40
        assert estimate.per_parameter["weight"] == pytest.approx(4000, rel=0.02)


class Deaf(nn.Module):
    """Turns autocast off for a layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            return self.layer(x.float())


@networks
@kinds
@methods
def test_autocast_around_the_call(method, kind, dtype, activation):
    """The model runs as the caller would run it there, and nothing of the region's changes."""
    case = perceptron(activation)
    truth = dense_truth(case)
    case.model.float()
    case.model[0] = Deaf(case.model[0])
    inputs = case.inputs.float()
    with torch.autocast("cpu", dtype):
        before = case.model(inputs)
        estimate = reading(case.model, inputs, case, method=method, kind=kind)
        assert torch.is_autocast_enabled("cpu")
        assert torch.equal(case.model(inputs), before)
    if estimate is not None:
        expected = truth.trace(kind)
        tolerance = TOLERANCE[dtype] * (5 if method == "finite_difference" else 1)
        assert abs(estimate.value - expected) <= 4 * estimate.stderr + tolerance * truth.scale


@methods
def test_inputs_that_only_autocast_takes(method):
    """bfloat16 rows into float32 layers."""
    case = perceptron(nn.Tanh)
    inputs = case.inputs.bfloat16()
    exact = Case(copy.deepcopy(case.model), case.loss_fn, inputs.double(), case.targets)
    truth = dense_truth(exact)
    case.model.float()
    with torch.autocast("cpu", torch.bfloat16):
        estimate = reading(case.model, inputs, case, method=method)
    tolerance = 5 * TOLERANCE[torch.bfloat16]
    close(estimate, truth, tolerance)


class OwnRegion(nn.Module):
    """A model with an autocast region of its own, as training code often has, or the same without one."""

    def __init__(self, model: nn.Module, *, enabled: bool) -> None:
        super().__init__()
        self.model, self.enabled = model, enabled

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.enabled):
            return self.model(x).to(x.dtype)


@kinds
@methods
def test_autocast_in_the_model(method, kind):
    case = perceptron(nn.Tanh)
    truth = dense_truth(
        Case(OwnRegion(case.model, enabled=False), case.loss_fn, case.inputs, case.targets)
    )
    model = OwnRegion(case.model.float(), enabled=True)
    estimate = reading(model, case.inputs.float(), case, method=method, kind=kind)
    tolerance = TOLERANCE[torch.bfloat16] * (5 if method == "finite_difference" else 2)
    close(estimate, truth, tolerance)


def overflowing() -> tuple[nn.Module, Callable[..., Tensor], Tensor, Tensor]:
    """float16, with a loss of 1 and a curvature of 90,000 for each weight, which float16 cannot hold."""
    model = nn.Linear(4, 1, bias=False, dtype=torch.float16)
    nn.init.zeros_(model.weight)
    return model, F.mse_loss, torch.full((2, 4), 300.0).half(), torch.ones(2, 1).half()


@pytest.mark.parametrize("options", [{"n_samples": 4}, {"rtol": 0.1}])
@pytest.mark.parametrize("method", ["hutchinson", "finite_difference"])
def test_numbers_that_overflow(method, options):
    """Refused, or marked as not converged, for the reason that it is: max_samples was not reached."""
    model, loss_fn, inputs, targets = overflowing()
    with warnings.catch_warnings(record=True):
        warnings.simplefilter("always")
        try:
            found = estimate_trace(model, loss_fn, inputs, targets, method=method, **options)
        except ValueError:
            return
    if math.isfinite(found.value):
        assert abs(found.value - 4 * 2 * 300.0**2) <= 4 * found.stderr + 0.02 * found.value
    else:
        assert not found.converged
        assert "max_samples" not in found.why

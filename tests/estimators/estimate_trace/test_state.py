"""What estimate_trace leaves alone: the model, random numbers, the caller's graphs and hooks, and memory."""

from __future__ import annotations

import contextlib
import gc
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metacurv import TraceEstimate, estimate_trace
from tests.estimators.dense.case import Case, Lambda, build, general, labels
from tests.estimators.dense.checks import EXACT, assert_exact, assert_within_errors, measure
from tests.estimators.dense.truth import dense_truth
from tests.helpers import assert_same
from tests.problems.once_differentiable import OnceCube
from tests.problems.problem import rand

# Every method with every kind that it serves.
WAYS = [
    ("exact", "ggn"),
    ("activation", "hessian"),
    ("activation", "ggn"),
    ("hutchinson", "hessian"),
    ("hutchinson", "ggn"),
    ("finite_difference", "hessian"),
    ("auto", "hessian"),
    ("auto", "ggn"),
]
ways = pytest.mark.parametrize(("method", "kind"), WAYS)


def mlp(middle: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), middle(), nn.Linear(4, 3)).double()


def reading(model: nn.Module, method: str, kind: str, **options: Any) -> TraceEstimate:
    options.setdefault("n_samples", 3)
    return estimate_trace(
        model, F.cross_entropy, rand(6, 3), labels(6), method=method, kind=kind, **options
    )


def normed() -> nn.Sequential:
    """A frozen layer, a norm in train mode inside a model whose head is in eval mode, and dropout."""
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model.double()[0].weight.requires_grad_(False)
    model[3].eval()
    model[0].bias.grad = torch.ones(4, dtype=torch.float64)
    return model


@pytest.mark.parametrize(
    ("method", "kind"), [way for way in WAYS if way[0] in ("hutchinson", "finite_difference")]
)
def test_model_in_train_mode(method, kind):
    model = normed()
    before = {name: (x, x.detach().clone()) for name, x in model.state_dict(keep_vars=True).items()}
    gradient = model[0].bias.grad
    reading(model, method, kind)
    after = model.state_dict(keep_vars=True)
    for name, (tensor, value) in before.items():
        assert after[name] is tensor, name
        assert tensor.equal(value), name
    assert [p.requires_grad for p in model.parameters()] == [False, *[True] * 5]
    assert model[0].bias.grad is gradient
    assert gradient.equal(torch.ones(4, dtype=torch.float64))
    assert all(p.grad is None for p in model.parameters() if p is not model[0].bias)
    assert [m.training for m in model.modules()] == [True, True, True, True, False]


@ways
def test_random_numbers(method, kind):
    """Neither used nor set: torch's, numpy's and python's."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    inputs, targets = rand(6, 3), labels(6)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    estimate_trace(model, F.cross_entropy, inputs, targets, method=method, kind=kind, n_samples=3)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()  # noqa: NPY002
    assert_same(after, before)


@pytest.mark.parametrize("shuffle", [False, True])
def test_random_numbers_with_a_data_loader(shuffle):
    """A loader draws its seed from torch's state; a training run must not hear of a reading."""
    loader = DataLoader(TensorDataset(rand(6, 3), labels(6)), batch_size=4, shuffle=shuffle)
    model = mlp()
    before = torch.get_rng_state()
    estimate_trace(model, F.cross_entropy, loader, n_samples=3)
    assert_same(torch.get_rng_state(), before)


@ways
def test_one_dropout_mask_in_all_passes(method, kind):
    """That of the random state at the call, which is the truth's."""
    layers = [nn.Linear(3, 6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3)]
    case = build(lambda: general(nn.Sequential(*layers).train(), 2 * rand(6, 3)))
    truth = dense_truth(case)
    estimate = measure(case, method=method, kind=kind, n_samples=80)
    if estimate.method == "exact":
        assert_exact(estimate, truth)
    else:
        assert_within_errors(estimate, truth)


@ways
def test_parameter_hooks_do_not_run(method, kind):
    """Nor change anything: clipping by hooks is for the user's own gradients."""
    plain, hooked = mlp(), mlp()
    hooked.load_state_dict(plain.state_dict())
    heard: list[str] = []

    def hook(gradient: Tensor) -> Tensor:
        heard.append("gradient")
        return 5 * gradient

    handles = [p.register_hook(hook) for p in hooked.parameters()]
    for p in hooked.parameters():
        p.register_post_accumulate_grad_hook(lambda p: heard.append("accumulated"))
    state = torch.get_rng_state()
    expected = reading(plain, method, kind)
    torch.set_rng_state(state)
    assert reading(hooked, method, kind).value == expected.value
    assert not heard
    F.cross_entropy(hooked(rand(6, 3)), labels(6)).backward()
    assert heard.count("gradient") == heard.count("accumulated") == len(handles)


@ways
@pytest.mark.parametrize("middle", [nn.Tanh, lambda: nn.BatchNorm1d(4)])
def test_graphs_of_the_caller_stay_usable(middle, method, kind):
    model, inputs = mlp(middle), rand(6, 3)
    parameters = list(model.parameters())

    def loss() -> Tensor:
        return F.cross_entropy(model(inputs), labels(6))

    expected = torch.autograd.grad(loss(), parameters)
    mine = loss()
    with contextlib.suppress(ValueError):  # batch norm in train mode
        reading(model, method, kind)
    for found, gradient in zip(torch.autograd.grad(mine, parameters), expected, strict=True):
        torch.testing.assert_close(found, gradient, rtol=1e-13, atol=1e-15)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "tanh": mlp,
    "relu": lambda: mlp(nn.ReLU),
    "layer norm": lambda: mlp(lambda: nn.LayerNorm(4)),
    "batch norm": lambda: mlp(lambda: nn.BatchNorm1d(4)),
    "once differentiable": lambda: mlp(lambda: Lambda(OnceCube.apply)),
}


@pytest.fixture
def no_collector() -> Iterator[None]:
    """A cycle would hold a model's whole graph until the collector happens to run."""
    gc.disable()
    yield
    gc.enable()


@ways
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("no_collector")
def test_nothing_is_kept(name, method, kind):
    """Neither in caches of structures nor in cycles, whether the method served or not."""
    model, inputs, targets = MODELS[name](), rand(6, 3), labels(6)
    with contextlib.suppress(ValueError, RuntimeError):
        estimate_trace(
            model, F.cross_entropy, inputs, targets, method=method, kind=kind, n_samples=2
        )
    held = [weakref.ref(x) for x in (model, inputs, targets, next(model.parameters()))]
    del model, inputs, targets
    assert [reference() is None for reference in held] == [True] * 4


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@ways
def test_modes_of_the_caller(mode, method, kind):
    """Inputs too may have been made in inference mode."""
    model = mlp()
    case = Case(model, F.cross_entropy, rand(6, 3), labels(6))
    expected = measure(case, method=method, kind=kind, n_samples=3)
    with mode():
        inputs, targets = case.inputs.clone(), case.targets.clone()
        found = measure(
            Case(model, F.cross_entropy, inputs, targets), method=method, kind=kind, n_samples=3
        )
        assert torch.is_inference_mode_enabled() == (mode is torch.inference_mode)
        assert not torch.is_grad_enabled()
    assert found.value == pytest.approx(expected.value, rel=EXACT)
    assert all(p.grad is None for p in model.parameters())


class Stops(nn.Module):
    """Raises in pass number ``at``, after its buffer has changed and a random number was drawn."""

    def __init__(self, error: type[BaseException], at: int) -> None:
        super().__init__()
        self.register_buffer("passes", torch.zeros(()))
        self.left, self.error = at, error

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        torch.rand(())
        self.left -= 1
        if self.left == 0:
            raise self.error("stopped")
        return x


@ways
@pytest.mark.parametrize(
    ("error", "at"), [(RuntimeError, 1), (RuntimeError, 3), (KeyboardInterrupt, 2)]
)
def test_a_model_that_raises(error, at, method, kind):
    """In its first pass or, where a method takes several, amid them."""
    model = mlp(lambda: Stops(error, at))
    before = {name: x.clone() for name, x in model.state_dict().items()}
    inputs = rand(6, 3)
    state = torch.get_rng_state()
    caught = (
        pytest.raises(error, match="stopped") if at == 1 else contextlib.suppress(error, ValueError)
    )
    with caught:
        estimate_trace(
            model, F.cross_entropy, inputs, labels(6), method=method, kind=kind, n_samples=3
        )
    assert_same(dict(model.state_dict()), before)
    assert_same(torch.get_rng_state(), state)
    assert all(p.grad is None and p.requires_grad for p in model.parameters())

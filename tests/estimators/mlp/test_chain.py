"""Plain stacks of layers under softmax cross-entropy: which losses are read as one, and that their numbers are right.

The dense tables hold the same code against dense matrices; here the long way round (``ActivationSpace``) is a second truth, for
larger networks and single draws.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metacurv
from metacurv.estimators.mlp.recognise import find_chain
from metacurv.estimators.mlp.second_derivatives import bend_columns
from metacurv.estimators.problem.parameters import number_parameters
from metacurv.estimators.select import measured_batch as opened
from tests.estimators.dense.case import Case, Lambda, build, elementwise, general, labels
from tests.estimators.dense.checks import assert_exact, assert_probes, measure
from tests.estimators.dense.truth import KINDS, dense_truth
from tests.problems.modules import Checkpointed
from tests.problems.problem import rand


def stack(*layers: nn.Module, loss: Any = F.cross_entropy, targets: Tensor | None = None) -> Case:
    return build(lambda: elementwise(nn.Sequential(*layers), rand(6, 3), loss, targets))


def deep(activation: Callable[[], nn.Module], depth: int = 5, width: int = 4) -> list[nn.Module]:
    """Enough layers for every kind of share: an activation's own layer, one below it, two and more below it."""
    layers: list[nn.Module] = [nn.Linear(3, width)]
    for _ in range(depth - 2):
        layers += [activation(), nn.Linear(width, width)]
    return [*layers, activation(), nn.Linear(width, 3)]


def is_chain(case: Case) -> bool:
    parameters = number_parameters(case.model.named_parameters(), of_model=True)
    return find_chain(case.loss(), parameters) is not None


ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky relu": nn.LeakyReLU,
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "gelu by tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "elu": nn.ELU,
    "mish": nn.Mish,
    "in place": lambda: nn.ReLU(inplace=True),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_deep_stacks(activation, kind):
    case = stack(*deep(ACTIVATIONS[activation]))
    assert is_chain(case)
    assert_exact(measure(case, method="exact", kind=kind), dense_truth(case))


IGNORED = torch.tensor([0, -100, 2, 1, -100, 0])
CHAINS = {
    "one layer": lambda: stack(nn.Linear(3, 3)),
    "one layer, no bias": lambda: stack(nn.Linear(3, 3, bias=False)),
    "mixed biases": lambda: stack(
        nn.Linear(3, 4, bias=False), nn.Tanh(), nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)
    ),
    "sum": lambda: stack(*deep(nn.Tanh, 3), loss=nn.CrossEntropyLoss(reduction="sum")),
    "ignored targets": lambda: stack(*deep(nn.Tanh), targets=IGNORED),
    "ignored targets, sum": lambda: stack(
        *deep(nn.Tanh), loss=nn.CrossEntropyLoss(reduction="sum"), targets=IGNORED
    ),
    "own ignored index": lambda: stack(
        *deep(nn.Tanh), loss=nn.CrossEntropyLoss(ignore_index=1), targets=labels(6)
    ),
    "nll outside": lambda: stack(
        *deep(nn.Tanh, 3), loss=lambda output, y: F.nll_loss(output.log_softmax(-1), y)
    ),
    "one class": lambda: build(
        lambda: elementwise(
            nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)),
            rand(6, 3),
            targets=torch.zeros(6, dtype=torch.int64),
        )
    ),
    "one sample": lambda: build(
        lambda: elementwise(nn.Sequential(*deep(nn.Tanh)), rand(1, 3), targets=labels(1))
    ),
    "rows of an input of three axes": lambda: build(
        lambda: general(
            nn.Sequential(Lambda(lambda x: x.flatten(0, 1)), *deep(nn.Tanh)),
            rand(3, 2, 3),
            targets=labels(6),
        )
    ),
    "eval mode": lambda: stack(nn.Linear(3, 4), nn.Tanh(), nn.Dropout(0.5).eval(), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CHAINS)
def test_chains(name, kind):
    case = CHAINS[name]()
    assert is_chain(case)
    assert_exact(measure(case, method="exact", kind=kind), dense_truth(case))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x).tanh())


class TiedBias(Tied):
    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(3, 3)
        self.other.bias = self.layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.layer(x).tanh())


class Addmm(Tied):
    def __init__(self, beta: float, alpha: float) -> None:
        super().__init__()
        self.factors = {"beta": beta, "alpha": alpha}

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.layer.bias, x, self.layer.weight.t(), **self.factors)


def frozen(layer: int, *names: str) -> Case:
    model = nn.Sequential(*deep(nn.Tanh, 4))
    for name in names:
        getattr(model[layer], name).requires_grad_(requires_grad=False)
    return build(lambda: general(model, rand(6, 3)))


def penalised(model: nn.Sequential) -> Case:
    return build(
        lambda: general(
            model, rand(6, 3), lambda o, y: F.cross_entropy(o, y) + model[0].weight.square().sum()
        )
    )


class BroadcastBias(Tied):
    """One number for all outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer.bias = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.layer.bias, x, self.layer.weight.t())


NOT_CHAINS = {
    "a bias for all outputs": lambda: build(lambda: general(BroadcastBias(), rand(6, 3))),
    "used twice": lambda: build(lambda: general(Tied(), rand(6, 3))),
    "a bias used twice": lambda: build(lambda: general(TiedBias(), rand(6, 3))),
    "alpha": lambda: build(lambda: general(Addmm(1, 2), rand(6, 3))),
    "beta": lambda: build(lambda: general(Addmm(3, 1), rand(6, 3))),
    "a penalty": lambda: penalised(nn.Sequential(*deep(nn.ReLU, 3))),
    "a scaled loss": lambda: stack(*deep(nn.ReLU, 3), loss=lambda o, y: 2 * F.cross_entropy(o, y)),
    "class weights": lambda: stack(
        *deep(nn.ReLU, 3),
        loss=nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3], dtype=torch.float64)),
    ),
    "label smoothing": lambda: stack(
        *deep(nn.ReLU, 3), loss=nn.CrossEntropyLoss(label_smoothing=0.1)
    ),
    "classes along rows": lambda: stack(
        *deep(nn.ReLU, 3),
        loss=lambda o, y: F.nll_loss(o.log_softmax(0), y),
    ),
    "squared error": lambda: stack(*deep(nn.ReLU, 3), loss=F.mse_loss, targets=rand(6, 3)),
    "a view between": lambda: stack(
        nn.Linear(3, 4), Lambda(lambda h: h.view(6, 2, 2).view(6, 4)), nn.ReLU(), nn.Linear(4, 3)
    ),
    "a frozen weight between": lambda: frozen(2, "weight"),
    "a frozen weight below": lambda: frozen(0, "weight"),
    "residual": lambda: stack(nn.Linear(3, 4), Lambda(lambda h: h + h.relu()), nn.Linear(4, 3)),
    "layers over sequences": lambda: build(
        lambda: general(
            nn.Sequential(
                nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), Lambda(lambda o: o.flatten(0, 1))
            ),
            rand(3, 2, 3),
            targets=labels(6),
        )
    ),
    "a layer norm": lambda: stack(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3)),
    "dropout": lambda: stack(nn.Linear(3, 4), nn.Dropout(0.5), nn.Linear(4, 3)),
    "a constant factor": lambda: stack(nn.Linear(3, 4), Lambda(lambda h: 2 * h), nn.Linear(4, 3)),
    "PReLU": lambda: stack(nn.Linear(3, 4), nn.PReLU(), nn.Linear(4, 3)),
    "two linear layers": lambda: stack(nn.Linear(3, 4), nn.Linear(4, 3)),
}


@pytest.mark.parametrize("name", NOT_CHAINS)
def test_not_chains(name):
    """That their traces are right all the same is for the dense tables."""
    assert not is_chain(NOT_CHAINS[name]())


@pytest.mark.parametrize(
    "frozen_ones", [(0, "weight", "bias"), (0, "bias"), (2, "bias"), (6, "bias")]
)
def test_frozen_parameters(frozen_ones):
    """The inputs of what lies above a frozen first layer are data; a frozen bias is one part less."""
    case = frozen(*frozen_ones)
    assert is_chain(case)
    for kind in KINDS:
        assert_exact(measure(case, method="exact", kind=kind), dense_truth(case))


def test_unused_parameters():
    model = nn.Sequential(*deep(nn.Tanh, 3))
    model.register_module("unused", nn.Identity())
    model.unused.weight = nn.Parameter(torch.ones(2))
    model.forward = lambda x: nn.Sequential(*list(model)[:-1])(x)
    case = build(lambda: general(model, rand(6, 3)))
    assert is_chain(case)
    estimate = measure(case, method="exact")
    assert_exact(estimate, dense_truth(case))
    assert estimate.per_parameter["unused.weight"] == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_log_softmax_in_the_model(kind):
    """Of the loss for the Hessian, of the model for the Gauss-Newton matrix."""
    case = stack(*deep(nn.ReLU, 3), nn.LogSoftmax(-1), loss=F.nll_loss)
    assert_exact(measure(case, method="exact", kind=kind), dense_truth(case))
    assert (dense_truth(case).trace(kind) == 0) == (kind == "ggn")


def without_chain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opened, "find_chain", lambda *_: None)


def network(sizes: list[int], dtype: torch.dtype, activation: type[nn.Module] = nn.ReLU):
    generator = torch.Generator().manual_seed(3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        layers: list[nn.Module] = []
        for fan_in, fan_out in itertools.pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), activation()]
    model = nn.Sequential(*layers[:-1]).to(dtype)
    x = torch.randn(23, sizes[0], generator=generator, dtype=torch.float64).to(dtype)
    return model, F.cross_entropy, x, torch.randint(0, sizes[-1], (23,), generator=generator)


SIZES = ([5, 3], [40, 100, 100, 10], [7, 33, 17, 9, 3], [3, 300, 300, 70], [4, 1, 2])


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("method", ["exact", "activation"])
def test_the_long_way_round(method, sizes, dtype, backend, monkeypatch):
    """Draws are those of ``ActivationSpace``: the same signs in the same places. It tells examples apart for its errors."""
    problem = network(sizes, dtype)
    options = {"method": method, "n_samples": 3, "seed": 5, "backend": backend}
    found = metacurv.estimate_trace(*problem, **options)
    without_chain(monkeypatch)
    expected = metacurv.estimate_trace(*problem, **options)
    rel = 1e-11 if dtype == torch.float64 else 2e-5
    assert found.value == pytest.approx(expected.value, rel=rel)
    assert found.per_parameter == pytest.approx(expected.per_parameter, rel=rel)
    assert (found.stderr == 0) == (expected.stderr == 0)


@pytest.mark.parametrize("max_memory", [1, 40_000])
def test_pieces(max_memory):
    """However many cotangents go at once."""
    problem = network([7, 12, 11, 10, 9, 5], torch.float64, nn.Tanh)
    for method, kind in (("exact", "hessian"), ("activation", "ggn")):
        options = {"method": method, "kind": kind, "n_samples": 9}
        whole = metacurv.estimate_trace(*problem, **options)
        pieces = metacurv.estimate_trace(*problem, **options, max_memory=max_memory)
        assert pieces.per_parameter == pytest.approx(whole.per_parameter, rel=1e-12)
        assert pieces.stderr == pytest.approx(whole.stderr, rel=1e-9)


def test_columns_of_smooth_activations():
    """Only units two layers above a layer need a column each, and many are left to sampling."""

    def count(*sizes: int) -> int:
        model, loss, x, y = network(list(sizes), torch.float64, nn.Tanh)
        parameters = number_parameters(model.named_parameters(), of_model=True)
        chain = find_chain(loss(model(x), y), parameters)
        assert chain is not None
        return bend_columns(chain)

    assert count(4, 9, 8, 3) == 0
    assert count(4, 9, 8, 7, 3) == 7
    assert count(4, 9, 8, 7, 6, 3) == 13
    problem = network([4, 30, 30, 30, 30, 3], torch.float64, nn.Tanh)
    estimate = metacurv.estimate_trace(*problem, n_samples=4)
    assert estimate.method == "activation"
    assert "2 columns of the loss's factor and 60 for smooth activations" in estimate.why
    assert metacurv.estimate_trace(*problem, n_samples=31).method == "exact"


@pytest.mark.parametrize("method", ["exact", "activation"])
@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu", "softplus", "elu", "mish"])
def test_modes_of_the_caller(activation, method):
    """Gradients off, inference mode (whose tensors must not stay in what is kept for the next call), autocast around a model
    that does without."""
    model, loss_fn, x, y = network([5, 6, 7, 3], torch.float32, ACTIVATIONS[activation])

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = model

        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast("cpu", enabled=False):
                return self.inner(x)

    def value() -> float:
        return metacurv.estimate_trace(Plain(), loss_fn, x, y, method=method, n_samples=3).value

    with torch.inference_mode():
        inside = value()
    with torch.no_grad():
        quiet = value()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cast = value()
    # Some derivatives are computed by other formulas where gradients are on.
    assert [inside, quiet, cast] == pytest.approx([value()] * 3, rel=1e-6)


def test_a_reading_under_autocast():
    model, loss_fn, x, y = network([5, 6, 7, 3], torch.float32, nn.Tanh)
    values = []
    for enabled in (False, True):
        opt = metacurv.MetaCurvatureLR(
            torch.optim.SGD(model.parameters(), lr=0.1), model=model, estimator="exact"
        )
        loss = loss_fn(model(x), y)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            opt.update_curvature(loss)
        values.append(opt.last_estimate.value)
    assert values[0] == values[1]


class Hooked(nn.Module):
    """Multiplies the gradients of all that its layers give."""

    def __init__(self, inner: nn.Sequential, factor: float | None) -> None:
        super().__init__()
        self.inner, self.factor = inner, factor

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.inner:
            x = layer(x)
            if self.factor is not None:
                x.register_hook(lambda gradient: self.factor * gradient)
        return x


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU])
def test_hooks_that_change_gradients(activation):
    """The loss's own curvature, which has no hooks."""
    model, loss_fn, x, y = network([5, 6, 7, 3], torch.float64, activation)
    plain, hooked = (
        metacurv.estimate_trace(Hooked(model, f), loss_fn, x, y, method="exact")
        for f in (None, 3.0)
    )
    assert hooked.value == pytest.approx(plain.value, rel=1e-12)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.SiLU])
def test_hooks_on_parameters_do_not_run(activation):
    model, loss_fn, x, y = network([5, 6, 7, 3], torch.float32, activation)
    calls: list[Tensor] = []
    for parameter in model.parameters():
        parameter.register_hook(calls.append)
    for method in ("exact", "activation"):
        metacurv.estimate_trace(model, loss_fn, x, y, method=method, n_samples=2)
    opt = metacurv.MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1), model=model, estimator="exact"
    )
    opt.update_curvature(loss_fn(model(x), y))
    assert not calls


def test_a_chain_without_the_parameters():
    """Nothing is 0 without a word where the loss depends on none of those that are asked for."""
    weight = torch.randn(3, 3, requires_grad=True)
    x, y = torch.randn(6, 3), labels(6)
    for method in ("auto", "exact", "activation"):
        with pytest.raises(ValueError, match=r"depend|not right"):
            metacurv.estimate_trace(
                nn.Linear(3, 3),
                lambda o, t: F.cross_entropy(x @ weight.t(), t),
                x,
                y,
                method=method,
            )


def test_a_checkpointed_model_keeps_its_statistics():
    """Saved tensors come from another forward pass there."""
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)]
    model = Checkpointed(nn.Sequential(*layers))
    metacurv.estimate_trace(model, F.cross_entropy, torch.randn(6, 3), labels(6))
    assert model.inner[1].num_batches_tracked == 0


def test_a_checkpointed_chain():
    case = build(lambda: elementwise(Checkpointed(nn.Sequential(*deep(nn.Tanh))), rand(6, 3)))
    assert is_chain(case)
    assert_exact(measure(case, method="exact"), dense_truth(case))


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu"])
def test_single_precision(activation):
    """Columns by the kernel, and the share of smooth activations, against float64."""
    for sizes in ([40, 100, 100, 10], [7, 9, 8, 7, 6, 5]):
        model, loss_fn, x, y = network(sizes, torch.float32, ACTIVATIONS[activation])
        found = metacurv.estimate_trace(model, loss_fn, x, y, method="exact")
        expected = metacurv.estimate_trace(
            model.double(), loss_fn, x.double(), y, method="exact", backend="reference"
        )
        assert found.value == pytest.approx(expected.value, rel=2e-5)
        assert found.per_parameter == pytest.approx(expected.per_parameter, rel=1e-4)


def test_weights_changed_since():
    """A step's loss whose weights were stepped meanwhile has no curvature to read any more."""
    model, loss_fn, x, y = network([5, 6, 3], torch.float32)
    opt = metacurv.MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1), model=model, estimator="exact"
    )
    loss = loss_fn(model(x), y)
    with torch.no_grad():
        model[2].weight.add_(1)
    with pytest.raises(ValueError, match="modified"):
        opt.update_curvature(loss)


class ByFunction(nn.Module):
    """Weights stored the other way round, one of them without a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.randn(*s) / 3) for s in ((7, 11), (11, 5)))
        self.bias = nn.Parameter(torch.randn(11))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.first).tanh() @ self.second


def test_weights_stored_the_other_way_round():
    case = build(lambda: elementwise(ByFunction(), rand(6, 7), targets=labels(6, classes=5)))
    assert is_chain(case)
    truth = dense_truth(case)
    for kind in KINDS:
        assert_exact(measure(case, method="exact", kind=kind), truth)
    assert_probes(measure(case, method="hutchinson", n_samples=3), case, truth, 1e-10)


def test_a_loss_with_weights_of_its_own():
    """Which are not asked for, and have no part in the trace, nor in a probe."""
    head = nn.Linear(4, 3).double()
    case = build(
        lambda: general(
            nn.Sequential(nn.Linear(3, 4), nn.Tanh()),
            rand(6, 3),
            lambda h, y: F.cross_entropy(head(h), y),
        )
    )
    assert is_chain(case)
    truth = dense_truth(case)
    assert_exact(measure(case, method="exact"), truth)
    assert_probes(measure(case, method="hutchinson", n_samples=3), case, truth, 1e-10)

"""Models and losses that a curvature estimate may trip over, by every method, against dense truth."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metacurv import estimate_trace
from tests.estimators.dense.case import Case, Lambda, build, elementwise, general, labels, piecewise
from tests.estimators.dense.checks import assert_exact, assert_within_errors, measure
from tests.estimators.dense.truth import KINDS, Truth, dense_truth
from tests.helpers import sampled
from tests.problems.problem import rand

ALL = ("exact", "activation", "hutchinson", "auto")
kinds = pytest.mark.parametrize("kind", KINDS)


def assert_right_or_refused(case: Case, kind: str, truth: Truth, *, must: tuple[str, ...]) -> None:
    """Every method; ``must``: those that have to serve."""
    for method in ALL:
        try:
            estimate = measure(case, method=method, kind=kind, n_samples=64)
        except ValueError as refusal:
            if method in must or not re.search("method|output", str(refusal)):
                raise
            continue
        check = assert_exact if estimate.method == "exact" else assert_within_errors
        check(estimate, truth)


def test_negative_trace():
    """Far from its minimum a bounded output bends the loss downwards."""

    def far(output: Tensor, target: Tensor) -> Tensor:
        return (output - target).square().mean()

    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2), nn.Tanh()]
    case = build(
        lambda: elementwise(
            nn.Sequential(*layers), 0.3 * rand(6, 3), far, torch.full((6, 2), -9.0).double()
        )
    )
    truth = dense_truth(case)
    assert truth.trace("hessian") < -1 < 0 < truth.trace("ggn")
    must = ("activation", "hutchinson", "auto")
    assert_right_or_refused(case, "hessian", truth, must=must)
    estimate = measure(case, method="activation", rtol=0.05)
    assert estimate.value < 0
    assert estimate.converged
    assert estimate.stderr <= 0.05 * -estimate.value


@kinds
def test_negative_weights_of_classes(kind):
    """What a loss unlearns bends it downwards: the factor of its Hessian is no square."""
    weight = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    loss = nn.CrossEntropyLoss(weight=weight, reduction="sum")
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)]
    case = build(lambda: piecewise(nn.Sequential(*layers), rand(6, 3), loss, labels(6, classes=3)))
    assert_right_or_refused(case, kind, dense_truth(case), must=ALL)


@kinds
@pytest.mark.parametrize(("rows", "classes"), [(1, 3), (6, 1), (1, 1)])
def test_one_sample_one_class(kind, rows, classes):
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, classes)]
    case = build(
        lambda: piecewise(
            nn.Sequential(*layers), rand(rows, 3), targets=labels(rows, classes=classes)
        )
    )
    truth = dense_truth(case)
    for method in ALL:
        estimate = measure(case, method=method, kind=kind, n_samples=50)
        if classes == 1:  # a constant loss
            assert abs(estimate.value) < 1e-12
        elif estimate.method == "exact":
            assert_exact(estimate, truth)
        else:
            assert_within_errors(estimate, truth)


@pytest.mark.parametrize("training", [True, False])
@kinds
def test_batch_norm(kind, training):
    layers = [nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3)]
    case = build(lambda: general(nn.Sequential(*layers).train(training), rand(6, 3)))
    truth = dense_truth(case)
    if not training:
        assert_right_or_refused(case, kind, truth, must=ALL)
        return
    for method in ("exact", "activation"):
        with pytest.raises(ValueError, match=r"batch norm in train mode.*model\.eval\(\).*hutch"):
            measure(case, method=method, kind=kind)
    assert_right_or_refused(case, kind, truth, must=("hutchinson", "auto"))
    if kind == "hessian":
        assert_within_errors(
            measure(case, method="finite_difference", kind=kind, n_samples=40), truth
        )
    assert "batch norm in train mode" in measure(case, kind=kind, n_samples=2).why


class Nested(nn.Module):
    """A shared submodule three levels down, used in parallel under one name of two."""

    def __init__(self) -> None:
        super().__init__()
        shared = nn.Linear(3, 3)
        self.left = nn.ModuleDict({"inner": nn.Sequential(nn.Sequential(shared), nn.ReLU())})
        self.right = nn.ModuleList([shared])
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.left["inner"](x) + self.right[0](x.flip(1)))


class InSequence(Nested):
    """Used on its own output: not linear in the shared weight."""

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.right[0](self.left["inner"](x)))


class Functional(nn.Module):
    """Calls a layer with other tensors than its own: a multiple of one, and one that bends."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 4), nn.Linear(4, 3)
        self.change = change

    def forward(self, x: Tensor) -> Tensor:
        values = {"weight": self.change(self.layer.weight), "bias": self.layer.bias}
        return self.out(functional_call(self.layer, values, (x,)).relu())


class Twice(nn.Module):
    """The same layer as a module and with a detached weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        fixed = {"weight": self.layer.weight.detach()}
        return self.out(self.layer(x).relu() + functional_call(self.layer, fixed, (x.flip(1),)))


WIRED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "shared in parallel": (Nested, ALL),
    "shared in sequence": (InSequence, ("hutchinson", "auto")),
    "functional_call, itself": (lambda: Functional(lambda w: w), ALL),
    "functional_call, a multiple": (lambda: Functional(lambda w: 2 * w), ("hutchinson", "auto")),
    "functional_call, bent": (lambda: Functional(torch.tanh), ("hutchinson", "auto")),
    "functional_call, detached": (Twice, ("hutchinson", "auto")),
}


@pytest.mark.parametrize("name", WIRED)
@kinds
def test_shared_and_functional_modules(kind, name):
    make, must = WIRED[name]
    case = build(lambda: general(make(), rand(6, 3)))
    assert_right_or_refused(case, kind, dense_truth(case), must=must)


@pytest.mark.parametrize("decay", [lambda w: 0.5 * w.square().sum(), lambda w: w.pow(4).mean()])
def test_weight_decay_inside_the_loss(decay):
    """What does not go through the output is part of the Hessian."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))

    def loss_fn(output: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(output, target) + sum(decay(p) for p in model.parameters())

    case = build(lambda: general(model, rand(6, 3), loss_fn))
    for method in ("exact", "activation"):
        with pytest.raises(ValueError, match="depends on parameters otherwise than through"):
            measure(case, method=method)
    estimate = measure(case, n_samples=150)
    assert estimate.method == "hutchinson"
    assert_within_errors(estimate, dense_truth(case))


@dataclasses.dataclass
class Output:
    logits: Tensor
    hidden: Tensor


class Structured(nn.Module):
    def __init__(self, middle: nn.Module, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.first, self.middle, self.second = nn.Linear(3, 4), middle, nn.Linear(4, 3)
        self.wrap = wrap

    def forward(self, x: Tensor) -> Any:
        hidden = self.middle(self.first(x))
        return self.wrap(self.second(hidden), hidden)


# How the model wraps its outputs, and how the loss picks the logits.
STRUCTURES: dict[str, tuple[Callable[[Tensor, Tensor], Any], Callable[[Any], Tensor]]] = {
    "tuple": (lambda logits, h: (logits, h), lambda out: out[0]),
    "dict": (lambda logits, h: {"hidden": h, "logits": logits}, lambda out: out["logits"]),
    "dataclass": (Output, lambda out: out.logits),
}
# A loss of the logits: one that is known, one behind a bend of the loss's own, and one of no known form.
OF_LOGITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": F.cross_entropy,
    "cross-entropy of tanh": lambda z, y: F.cross_entropy((2 * z).tanh(), y),
    "log of softmax": lambda z, y: F.nll_loss(z.softmax(1).log(), y),
    "fourth power": lambda z, y: (z - 1).pow(4).mean(),
}


@pytest.mark.parametrize("loss", sampled(OF_LOGITS, 3))
@pytest.mark.parametrize("structure", STRUCTURES)
@kinds
@pytest.mark.parametrize("middle", [nn.ReLU, nn.Tanh])
def test_structured_outputs(middle, kind, structure, loss):
    """As for the logits alone; the GGN, which ends at one tensor, may be refused, even by auto, if it says so."""
    wrap, pick = STRUCTURES[structure]
    plain = build(
        lambda: general(Structured(middle(), lambda z, _: z), rand(6, 3), OF_LOGITS[loss])
    )
    truth = dense_truth(plain)
    model = Structured(middle(), wrap).double()
    model.load_state_dict(plain.model.state_dict())
    case = Case(model, lambda out, y: OF_LOGITS[loss](pick(out), y), plain.inputs, plain.targets)
    must = ("hutchinson", "auto") if kind == "hessian" else ()
    assert_right_or_refused(case, kind, truth, must=must)


def test_a_loss_of_more_than_the_logits_has_no_gauss_newton_matrix_at_them():
    case = build(lambda: general(Structured(nn.Tanh(), Output), rand(6, 3), None))

    def loss_fn(out, y):
        return F.cross_entropy(out.logits, y) + out.hidden.square().sum()

    for method in ("auto", "exact", "activation", "hutchinson"):
        with pytest.raises(ValueError, match=r"output=lambda out|one tensor"):
            estimate_trace(
                case.model, loss_fn, case.inputs, case.targets, kind="ggn", method=method
            )
    plain = estimate_trace(
        case.model,
        lambda out, y: F.cross_entropy(out.logits, y),
        case.inputs,
        case.targets,
        kind="ggn",
        method="hutchinson",
        n_samples=4,
    )
    assert plain.value > 0


def test_lambda_layers_are_seen_through():
    """No module shows the bend."""
    case = build(lambda: elementwise(nn.Sequential(nn.Linear(3, 4), Lambda(torch.sin)), rand(6, 3)))
    with pytest.raises(ValueError, match="Sin"):
        estimate_trace(case.model, F.cross_entropy, case.inputs, case.targets, method="exact")

"""What ``TraceEstimate.why`` says: the method that ran, and why faster ones did not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch.nn.functional as F
from torch import nn

from metacurv import TraceEstimate
from metacurv.estimators.select.methods import Cost, Hutchinson
from tests.estimators.dense.case import Case, Lambda, build, general
from tests.estimators.dense.checks import measure
from tests.problems.once_differentiable import OnceCube
from tests.problems.problem import rand

# Model -> kind -> method, and words that its reason has to hold.
EXPECTED: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[str, list[str]]]]] = {
    "relu": (
        nn.ReLU,
        {
            "hessian": ("exact", ["2 columns", "backward pass"]),
            "ggn": ("exact", ["2 columns", "backward pass"]),
        },
    ),
    "tanh": (
        nn.Tanh,
        {
            "hessian": ("exact", ["2 columns"]),
            "ggn": ("exact", ["2 columns"]),
        },
    ),
    "tanh and a scale": (
        lambda: nn.Sequential(nn.Tanh(), Lambda(lambda x: 2 * x)),
        {
            "hessian": ("activation", ["not exact", "linear in pieces", "has Tanh elsewhere"]),
            "ggn": ("exact", ["2 columns"]),
        },
    ),
    "layer norm": (
        lambda: nn.LayerNorm(4),
        {
            "hessian": ("split", ["neither exact nor activation", "LayerNorm", "control variate"]),
            "ggn": ("exact", ["2 columns"]),
        },
    ),
    "batch norm": (
        lambda: nn.BatchNorm1d(4),
        {
            "hessian": ("hutchinson", ["nor activation nor split", "batch norm in train mode"]),
            "ggn": ("hutchinson", ["nor activation nor split", "batch norm in train mode"]),
        },
    ),
    "once differentiable": (
        lambda: Lambda(OnceCube.apply),
        {
            "hessian": (
                "finite_difference",
                [
                    "neither exact nor activation",
                    "neither split nor hutchinson",
                    "OnceCube",
                    "once_differentiable",
                ],
            ),
            "ggn": ("exact", ["2 columns"]),
        },
    ),
}


def case_of(middle: Callable[[], nn.Module], classes: int = 3) -> Case:
    layers = [nn.Linear(3, 4), middle(), nn.Linear(4, classes)]
    return build(lambda: general(nn.Sequential(*layers), rand(6, 3)))


def assert_reason(estimate: TraceEstimate, method: str, words: list[str]) -> None:
    """One line, which begins with the method."""
    assert estimate.method == method
    assert estimate.why.startswith(f"{method}: ")
    assert "\n" not in estimate.why
    for word in words:
        assert word in estimate.why


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
@pytest.mark.parametrize("name", EXPECTED)
def test_auto(name, kind):
    middle, expected = EXPECTED[name]
    method, words = expected[kind]
    assert_reason(measure(case_of(middle), kind=kind, n_samples=8), method, words)


def test_too_many_columns():
    estimate = measure(case_of(nn.ReLU, classes=80), n_samples=8)
    assert_reason(estimate, "activation", ["exact would take 79 columns"])
    assert measure(case_of(nn.ReLU, classes=80), n_samples=40).method == "exact"


def test_the_cheapest_of_the_right_ones_is_taken(monkeypatch):
    """Whatever their order: only then does a new method need no place in it."""
    monkeypatch.setattr(Hutchinson, "cost", lambda *_: Cost(1, "next to nothing"))
    words = ["next to nothing", "exact would take 2 columns", "activation would take one backward"]
    assert_reason(measure(case_of(nn.ReLU), n_samples=8), "hutchinson", words)


@pytest.mark.parametrize("method", ["exact", "activation", "hutchinson"])
def test_by_name(method):
    estimate = measure(case_of(nn.ReLU), method=method, n_samples=4)
    assert estimate.method == method
    assert estimate.why == "asked for by name"


def test_stopped_early():
    case = case_of(lambda: nn.Sequential(nn.Tanh(), Lambda(lambda x: 2 * x)))
    with pytest.warns(UserWarning, match=r"max_samples.*rtol"):
        estimate = measure(case, rtol=0.001, max_samples=20)
    assert not estimate.converged
    assert_reason(
        estimate, "activation", ["has Tanh elsewhere", "stopped by max_samples after 20 samples"]
    )


def test_refusals_say_what_to_use():
    case = case_of(lambda: nn.LayerNorm(4))
    for method in ("exact", "activation"):
        with pytest.raises(ValueError, match=rf"method='{method}' is not right.*LayerNorm.*'auto'"):
            measure(case, method=method)
    with pytest.raises(
        ValueError, match=r"method='finite_difference' is not right.*Hessian only.*'ggn'"
    ):
        measure(case, method="finite_difference", kind="ggn")


def test_a_loss_that_decides():
    """The same network, another reason."""
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    case = build(
        lambda: general(
            model,
            rand(6, 3),
            lambda out, y: F.cross_entropy(out, y) + model[0].weight.square().sum(),
        )
    )
    words = ["neither exact nor activation", "otherwise than through the model's output"]
    assert_reason(measure(case, n_samples=8), "hutchinson", words)

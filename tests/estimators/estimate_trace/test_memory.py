"""Memory of estimate_trace: activation space with many classes, and what ``max_memory`` bounds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import metacurv
from metacurv import estimate_trace
from tests.helpers import peak_bytes

CLASSES = 50_000


class Head(nn.Module):
    """Few parameters, many classes: the logits are [N, C], and little else is large."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, 2)
        self.register_buffer("directions", torch.randn(2, classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) @ self.directions


def problem(classes: int, rows: int = 2) -> tuple[nn.Module, Tensor, Tensor]:
    return Head(classes), torch.randn(rows, 4), torch.randint(classes, (rows,))


def truth_in_closed_form(model: nn.Module, x: Tensor) -> float:
    """tr H = 1/N sum_n (|x_n|^2 + 1) tr(D (diag p - p p') D'), z = x' W' D + b' D, D [2, C], in float64."""
    logits, d = model.double()(x.double()).detach(), model.directions.double()
    p = logits.softmax(1)
    inner = (p @ d.square().t()).sum(1) - (p @ d.t()).square().sum(1)
    return float(((x.double().square().sum(1) + 1) * inner).mean())


def test_fifty_thousand_classes_one_draw():
    model, x, y = problem(CLASSES)
    single = estimate_trace(model, F.cross_entropy, x, y, method="activation", n_samples=1)
    assert single.n_samples == 1
    many = estimate_trace(
        model, F.cross_entropy, x, y, method="activation", n_samples=300, max_memory=1 << 24
    )
    expected = truth_in_closed_form(model, x)
    assert abs(many.value - expected) <= 4 * many.stderr
    assert many.stderr <= 0.1 * expected


def test_fifty_thousand_classes_take_memory_of_the_order_of_the_logits():
    """Nothing of size C^2, nor a multiple of the logits that grows."""

    def draw(classes: int) -> Callable[[], object]:
        model, x, y = problem(classes)
        return lambda: estimate_trace(
            model, F.cross_entropy, x, y, method="activation", n_samples=1
        )

    logits = 2 * CLASSES * 4
    # The twin of the compiled op writes its signs down.
    copies = 12 if metacurv.native_available() else 16
    assert peak_bytes(draw(CLASSES)) <= copies * logits
    assert peak_bytes(draw(CLASSES)) <= 15 * peak_bytes(draw(CLASSES // 10))


def test_auto_does_not_take_fifty_thousand_columns():
    model, x, y = problem(CLASSES)
    estimate = estimate_trace(model, F.cross_entropy, x, y, n_samples=4)
    assert estimate.method == "activation"
    assert "columns" in estimate.why


@pytest.mark.parametrize("memory", [1 << 15, 1 << 18])
def test_exact_is_bounded(memory):
    """By the model's own graph and ``max_memory``, whatever the number of columns."""
    model, x, y = problem(600, rows=1)

    def exact() -> float:
        return estimate_trace(model, F.cross_entropy, x, y, method="exact", max_memory=memory).value

    def gradient() -> None:
        torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))

    assert peak_bytes(exact) <= 3 * peak_bytes(gradient) + 2 * memory
    assert exact() == pytest.approx(truth_in_closed_form(model, x), rel=1e-4)


class Tied(nn.Module):
    """An embedding that is the output layer too: its gradients of all samples are [R, N, V, features]."""

    def __init__(self, entries: int, features: int) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(entries, features), nn.Linear(features, features)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(self.mix(self.embed(tokens)).tanh(), self.embed.weight)


@pytest.mark.parametrize("method", ["exact", "activation"])
def test_tied_weights_are_bounded_too(method):
    model, rows = Tied(200, 16), 16
    tokens = torch.arange(rows) * 7 % 200
    memory = 1 << 20

    def reading() -> None:
        estimate_trace(
            model,
            F.cross_entropy,
            tokens,
            tokens.flip(0),
            kind="ggn",
            method=method,
            n_samples=64,
            max_memory=memory,
        )

    one_row_each = rows * 200 * 16 * 4  # gradients of one cotangent
    assert peak_bytes(reading) <= 4 * (memory + one_row_each)

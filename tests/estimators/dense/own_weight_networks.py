"""Weights that no layer owns, that a function makes, or that one layer lends another."""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrize import register_parametrization

from tests.estimators.dense.case import (
    Case,
    Lambda,
    Table,
    by_token,
    elementwise,
    general,
    piecewise,
)
from tests.problems.problem import rand

OWN_WEIGHTS: Table = {}


class OwnParameters(nn.Module):
    """``use(x, weight [4, 3], bias [4])`` -> [N, 4], then a layer."""

    def __init__(self, use: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))
        self.bias = nn.Parameter(torch.randn(4))
        self.out = nn.Linear(4, 3)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.use(x, self.weight, self.bias))


def own(use: Callable[[Tensor, Tensor, Tensor], Tensor], family: Callable[..., Case]) -> Case:
    return family(OwnParameters(use), 2 * rand(6, 3), may_refuse=True)


def learned_positions_and_scale() -> Case:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.positions = nn.Parameter(torch.randn(4, 3))
            self.scale = nn.Parameter(torch.randn(3))
            self.out = nn.Linear(3, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.out(self.scale * (self.embed(tokens) + self.positions).tanh())

    tokens = torch.tensor([[0, 3, 1, 1], [2, 2, 4, 0]])
    return elementwise(Model(), tokens, by_token, tokens % 3, may_refuse=True)


def learned_temperature() -> Case:
    """1 / t bends."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)
            self.temperature = nn.Parameter(torch.tensor(1.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) / self.temperature

    return general(Model(), rand(6, 3), may_serve=True)


def functional_call_inside() -> Case:
    """The weights that its layer runs with are not the layer's own."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 4).requires_grad_(False)
            self.change = nn.Parameter(torch.randn(4, 3))
            self.out = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            weight = self.layer.weight + self.change.sin()
            changed = {"weight": weight, "bias": self.layer.bias}
            return self.out(functional_call(self.layer, changed, x).relu())

    return general(Model(), rand(6, 3), may_serve=True)


class UnitRows(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight / weight.square().sum(1, keepdim=True).sqrt()


def parametrized_weight() -> Case:
    """Like weight_norm, whose own second derivative is not symmetric in torch 2.13."""
    layer = register_parametrization(nn.Linear(3, 4), "weight", UnitRows())
    return general(nn.Sequential(layer, nn.ReLU(), nn.Linear(4, 3)), rand(6, 3))


def low_rank_update() -> Case:
    """Two factors beside a frozen layer."""

    class Adapted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = nn.Linear(3, 4).requires_grad_(False)
            self.down = nn.Linear(3, 2, bias=False)
            self.up = nn.Linear(2, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.frozen(x) + self.up(self.down(x))

    layers = [Adapted(), nn.ReLU(), Lambda(lambda h: 2 * h), nn.Linear(4, 3)]
    return piecewise(nn.Sequential(*layers), rand(6, 3))


OWN_WEIGHTS |= {
    "own_weight_in_f_linear": lambda: own(lambda x, w, b: F.linear(x, w, b).relu(), piecewise),
    "own_weight_in_matmul": lambda: own(lambda x, w, b: (x @ w.t() + b).tanh(), elementwise),
    "own_weight_in_einsum": lambda: own(
        lambda x, w, b: torch.einsum("ni,oi->no", x, w).relu() * b, piecewise
    ),
    "own_bias_used_twice": lambda: own(lambda x, w, b: (F.linear(x, w, b) + b).relu(), piecewise),
    "own_weight_squared": lambda: own(
        lambda x, w, b: F.linear(x, w.square(), b), functools.partial(general, may_serve=True)
    ),
    "own_weight_times_its_own_bias": lambda: own(
        lambda x, w, b: F.linear(x, w * b.unsqueeze(1), b).relu(), piecewise
    ),
    "learned_positions_and_scale": learned_positions_and_scale,
    "learned_temperature": learned_temperature,
    "functional_call_inside": functional_call_inside,
    "parametrized_weight": parametrized_weight,
    "low_rank_update": low_rank_update,
}

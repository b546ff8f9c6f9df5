"""Networks of real size, whose Hessians are too large to write down: parameters, inputs and loss in any precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Network:
    """``loss(params)`` follows the dtype of ``params``."""

    params: dict[str, Tensor]
    loss: Callable[[Values], Tensor]

    def to(self, dtype: torch.dtype) -> dict[str, Tensor]:
        return {n: p.detach().to(dtype).requires_grad_() for n, p in self.params.items()}


def _linear_params(*sizes: int) -> dict[str, Tensor]:
    """float32 layers as nn.Linear starts them, written as float64."""
    params = {}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(sizes)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(i)
            layer = torch.nn.Linear(fan_in, fan_out)
        params[f"{i}.weight"] = layer.weight.detach().double()
        params[f"{i}.bias"] = layer.bias.detach().double()
    return params


def _data(rows: int, features: int, classes: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, features, generator=generator)
    return x, torch.randint(classes, (rows,), generator=generator)


def mlp(*sizes: int, rows: int = 100, activation: Callable[[Tensor], Tensor] = F.relu) -> Network:
    """mlp(40, 100, 100, 10): the network of the mnist1d experiment."""
    x, y = _data(rows, sizes[0], sizes[-1])

    def loss(p: Values) -> Tensor:
        h = x.to(p["0.weight"].dtype)
        for i in range(len(sizes) - 1):
            h = F.linear(h if i == 0 else activation(h), p[f"{i}.weight"], p[f"{i}.bias"])
        return F.cross_entropy(h, y)

    return Network(_linear_params(*sizes), loss)


def wide_and_shared() -> Network:
    """Weights large enough for products without a stored probe, in every role: both ways round, twice, with odd sizes."""
    x, y = _data(33, 91, 7)
    params = _linear_params(91, 103, 103, 7)

    def loss(p: Values) -> Tensor:
        x0 = x.to(p["0.weight"].dtype)
        h = F.linear(x0, p["0.weight"], p["0.bias"]).tanh()
        h = h + F.linear(h, p["1.weight"], p["1.bias"]).tanh()
        h = h + F.linear(h.sigmoid(), p["1.weight"], p["0.bias"])
        back = h @ p["0.weight"]  # the decoder is the encoder transposed
        return (
            F.cross_entropy(F.linear(h, p["2.weight"], p["2.bias"]), y)
            + (back - x0).square().mean()
        )

    return Network(params, loss)

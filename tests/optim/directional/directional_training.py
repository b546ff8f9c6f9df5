"""What the tests of the directional rule share: quadratics whose slope and curvature are known by hand, and a small network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metacurv import MetaCurvatureLR


class Point(nn.Module):
    """The output is the parameter itself, whatever the input."""

    def __init__(self, *values: float, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(values, dtype=dtype))

    def forward(self, _: Tensor) -> Tensor:
        return self.w


def bowl(stiffness: Sequence[float]) -> Any:
    """sum h_i (w_i - target_i)^2 / 2: gradient h (w - target), Hessian diag(h)."""

    def loss(w: Tensor, target: Tensor) -> Tensor:
        h = torch.tensor(stiffness, dtype=w.dtype)
        return 0.5 * (h * (w - target).square()).sum()

    return loss


def pairs(
    *targets: Sequence[float], dtype: torch.dtype = torch.float64
) -> list[tuple[Tensor, Tensor]]:
    """(inputs, targets) batches for ``Point``."""
    return [(torch.zeros(1), torch.tensor(target, dtype=dtype)) for target in targets]


def descend(
    point: Point, opt: torch.optim.Optimizer, loss: Any, target: Tensor, steps: int
) -> None:
    """The user's loop on a bowl."""
    for _ in range(steps):
        opt.zero_grad()
        loss(point(target), target).backward()
        opt.step()


def data(dtype: torch.dtype = torch.float32) -> TensorDataset:
    """96 examples of 4 numbers in 3 classes that a linear map tells apart, but for noise."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(96, 4, generator=generator)
    y = (
        x @ torch.randn(4, 3, generator=generator) + 0.5 * torch.randn(96, 3, generator=generator)
    ).argmax(1)
    return TensorDataset(x.to(dtype), y)


def network(
    *, dropout: float = 0.0, norm: bool = False, dtype: torch.dtype = torch.float32
) -> nn.Sequential:
    """4 -> 16 -> 3, always the same weights; the global random state stays as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers: list[nn.Module] = [nn.Linear(4, 16)]
        if norm:
            layers.append(nn.BatchNorm1d(16))
        layers += [nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)]
        return nn.Sequential(*layers).to(dtype)


def batch(step: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """The training batch of ``step``: 16 examples."""
    x, y = data(dtype).tensors
    rows = torch.randperm(96, generator=torch.Generator().manual_seed(step))[:16]
    return x[rows], y[rows]


def loader(dtype: torch.dtype = torch.float32) -> DataLoader[Any]:
    """What the rule is given: the training data in batches of 16."""
    return DataLoader(data(dtype), batch_size=16)


def directional(base: torch.optim.Optimizer, model: nn.Module, **options: Any) -> MetaCurvatureLR:
    """The wrapper as the README has it."""
    settings: dict[str, Any] = {
        "rule": "directional",
        "model": model,
        "loss_fn": nn.functional.cross_entropy,
        "probe": loader(next(model.parameters()).dtype),
        "race": 3,
        **options,
    }
    return MetaCurvatureLR(base, **settings)


def train(model: nn.Module, opt: torch.optim.Optimizer, steps: int, *, start: int = 0) -> None:
    """The loop as it was before the wrapper."""
    dtype = next(model.parameters()).dtype
    for step in range(start, start + steps):
        x, y = batch(step, dtype)
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()


def training_loss(model: nn.Module) -> float:
    """Over all of ``data``, in eval mode."""
    x, y = data(next(model.parameters()).dtype).tensors
    was = model.training
    model.eval()
    with torch.no_grad():
        value = nn.functional.cross_entropy(model(x), y).item()
    model.train(was)
    return value

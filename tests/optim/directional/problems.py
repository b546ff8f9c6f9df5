"""Small problems on which a rule has gone wrong, and a loop for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from metacurv import DirectionalLR, MetaCurvatureLR

Base = Callable[[Any], torch.optim.Optimizer]

BASES: dict[str, Base] = {
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
    "SGD-momentum": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "Adam": torch.optim.Adam,
    "AdamW": torch.optim.AdamW,
    "RMSprop": torch.optim.RMSprop,
    "Adagrad": torch.optim.Adagrad,
    "NAdam": torch.optim.NAdam,
    "RAdam": torch.optim.RAdam,
    "Adamax": torch.optim.Adamax,
    "Adafactor": torch.optim.Adafactor,
}


def network_of(seed: int, *sizes: int, activation: Any = nn.Tanh) -> nn.Sequential:
    """A network of these widths."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
        return nn.Sequential(*layers[:-1])


def normal(seed: int, *shape: int) -> Tensor:
    """Numbers of a generator of their own."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@dataclass
class Run:
    """A training of ``model`` on x, y for ``horizon`` steps; ``opt`` is wrapped with the data as its probe."""

    model: nn.Module
    base: Base
    x: Tensor
    y: Tensor
    horizon: int
    size: int = 10**9
    loss_fn: Any = nn.functional.mse_loss
    options: dict[str, Any] = field(default_factory=dict)
    after_step: Callable[[int], None] = lambda _: None

    def __post_init__(self) -> None:
        self.size = min(self.size, len(self.x))
        batches = list(zip(self.x.split(self.size), self.y.split(self.size), strict=True))
        opt = MetaCurvatureLR(
            self.base(self.model.parameters()),
            **{
                "model": self.model,
                "loss_fn": self.loss_fn,
                "probe": batches,
                "horizon": self.horizon,
                **self.options,
            },
        )
        assert isinstance(opt, DirectionalLR)
        self.opt = opt
        self.first = self.loss()
        self.steps = 0
        self._order = torch.Generator().manual_seed(3)

    def loss(self) -> float:
        """Over all data."""
        with torch.no_grad():
            return float(self.loss_fn(self.model(self.x), self.y))

    def go(self, steps: int | None = None) -> Run:
        """Takes so many steps, or all that are left."""
        for _ in range(self.horizon - self.steps if steps is None else steps):
            rows = torch.arange(len(self.x))
            if self.size < len(self.x):
                rows = torch.randperm(len(self.x), generator=self._order)[: self.size]
            self.opt.zero_grad()
            self.loss_fn(self.model(self.x[rows]), self.y[rows]).backward()
            self.opt.step()
            self.steps += 1
            self.after_step(self.steps)
        return self

    @property
    def rates(self) -> list[float]:
        """The rule's rate after every event."""
        return [lr for record in self.opt.history for lr in record.lr]

    def events(self, *kinds: str) -> list[Any]:
        """Those records."""
        return [record for record in self.opt.history if record.event in kinds]

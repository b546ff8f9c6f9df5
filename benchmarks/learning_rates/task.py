"""A task that rules are compared on: data, network, loss and base optimizer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from metacurv.experiment.model import mlp

from .part import Part, Splits

Measure = Literal["accuracy", "mse", "loss"]
Base = Literal["adam", "adamw", "sgd"]


def one_group(model: nn.Module) -> list[dict[str, Any]]:
    """Returns all parameters as one parameter group."""
    return [{"params": list(model.parameters())}]


@dataclass(frozen=True)
class Task:
    """Data, network, loss and base optimizer; ``steps`` of ``batch_size`` examples.

    Attributes:
        measure: the measure of the result; "accuracy" in per cent, "mse" in thousandths of the targets' variance, "loss" in
            nats.
        outcomes: the number of classes, or of characters of the alphabet.
        groups: the parameter groups of the network.
    """

    name: str
    data: Callable[[int], Splits]
    network: Callable[[int], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    base: Base
    batch_size: int
    steps: int
    measure: Measure
    outcomes: int = 10
    groups: Callable[[nn.Module], list[dict[str, Any]]] = one_group

    @property
    def higher_is_better(self) -> bool:
        """True where a higher result is better."""
        return self.measure == "accuracy"

    @property
    def unit(self) -> str:
        """The unit of the result, for tables."""
        return {"accuracy": "accuracy, %", "mse": "MSE x 1000", "loss": "loss, nats"}[self.measure]

    @property
    def base_name(self) -> str:
        """The base optimizer's class."""
        return {"adam": "Adam", "adamw": "AdamW", "sgd": "SGD"}[self.base]

    @property
    def useless(self) -> float:
        """The result of a model that has learnt nothing, which a run that diverged counts as."""
        by_chance = {"accuracy": 1 / self.outcomes, "mse": 1.0, "loss": math.log(self.outcomes)}
        return self.scaled(by_chance[self.measure])

    def scaled(self, raw: float) -> float:
        """Converts a raw value to the unit of the result."""
        return raw * {"accuracy": 100.0, "mse": 1000.0, "loss": 1.0}[self.measure]

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Makes the base optimizer."""
        groups = self.groups(model)
        if self.base == "adam":
            return torch.optim.Adam(groups, lr=lr, fused=True)
        if self.base == "adamw":
            return torch.optim.AdamW(groups, lr=lr, weight_decay=0.01, fused=True)
        return torch.optim.SGD(groups, lr=lr, momentum=0.9, fused=True)

    @torch.no_grad()
    def result(self, model: nn.Module, part: Part) -> float:
        """Returns the measure over ``part``, with the model in evaluation mode."""
        with evaluation_mode(model):
            output = torch.cat([model(x) for x in torch.split(part.x, 1000)])
        if self.measure == "accuracy":
            return self.scaled((output.argmax(-1) == part.y).double().mean().item())
        return self.scaled(self.loss_fn(output, part.y).item())


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluates without dropout and by the running statistics; the mode comes back at the end."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean over examples, and over positions where there are any. logits [..., C], classes [...]."""
    return functional.cross_entropy(logits.flatten(0, -2), classes.flatten())


def perceptron(*sizes: int, activation: str = "relu") -> Callable[[int], nn.Module]:
    """Returns what makes a perceptron of these widths from a seed."""
    first, *hidden, last = sizes
    return partial(_mlp, first, tuple(hidden), last, activation)


def _mlp(first: int, hidden: tuple[int, ...], last: int, activation: str, seed: int) -> nn.Module:
    return mlp(first, hidden, last, activation, seed=seed)

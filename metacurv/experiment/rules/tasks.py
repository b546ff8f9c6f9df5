"""The tasks that rules are compared on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..model import mlp
from . import datasets, networks
from .datasets import Part, Splits

Measure = Literal["accuracy", "mse", "loss"]
_USELESS = {
    "accuracy": 0.1,
    "mse": 1.0,
    "loss": 4.852,
}  # of a model that says nothing: log 128 nats


@dataclass(frozen=True)
class Task:
    """Data, network, loss and base optimizer; ``steps`` of ``batch_size`` examples.

    ``measure``: the measure of the result; "accuracy" in per cent, "mse" in thousandths of the targets' variance, "loss" in
    nats.
    """

    name: str
    data: Callable[[int], Splits]
    network: Callable[[int], nn.Module]
    loss_fn: Callable[[Tensor, Tensor], Tensor]
    base: Literal["adam", "adamw", "sgd"]
    batch_size: int
    steps: int
    measure: Measure

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
        return self.scaled(_USELESS[self.measure])

    def scaled(self, raw: float) -> float:
        """Converts a raw value to the unit of the result."""
        return raw * {"accuracy": 100.0, "mse": 1000.0, "loss": 1.0}[self.measure]

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        """Makes the base optimizer."""
        parameters = model.parameters()
        if self.base == "adam":
            return torch.optim.Adam(parameters, lr=lr, fused=True)
        if self.base == "adamw":
            return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.01, fused=True)
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9, fused=True)

    @torch.no_grad()
    def result(self, model: nn.Module, part: Part) -> float:
        """Returns the measure over ``part``."""
        output = torch.cat([model(x) for x in torch.split(part.x, 1000)])
        if self.measure == "accuracy":
            return self.scaled((output.argmax(-1) == part.y).double().mean().item())
        return self.scaled(self.loss_fn(output, part.y).item())


def cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    """Mean over examples, and over positions where there are any. logits [..., C], classes [...]."""
    return functional.cross_entropy(logits.flatten(0, -2), classes.flatten())


def _perceptron(*sizes: int, activation: str = "relu") -> Callable[[int], nn.Module]:
    first, *hidden, last = sizes
    return partial(_mlp, first, tuple(hidden), last, activation)


def _mlp(first: int, hidden: tuple[int, ...], last: int, activation: str, seed: int) -> nn.Module:
    return mlp(first, hidden, last, activation, seed=seed)


_SIZES = (40, 100, 100, 10)
_MLP = Task(
    "mlp-relu", datasets.mnist1d, _perceptron(*_SIZES), cross_entropy, "adam", 100, 2000, "accuracy"
)
_DIGITS = Task(
    "digits-mlp",
    datasets.digits,
    _perceptron(64, 64, 64, 10),
    cross_entropy,
    "adam",
    50,
    1500,
    "accuracy",
)
_FRIEDMAN = Task(
    "friedman",
    datasets.friedman,
    _perceptron(10, 64, 64, 1),
    functional.mse_loss,
    "adam",
    50,
    2000,
    "mse",
)

TASKS = {
    task.name: task
    for task in (
        _MLP,
        replace(_MLP, name="mlp-tanh", network=_perceptron(*_SIZES, activation="tanh")),
        replace(_MLP, name="mlp-gelu", network=_perceptron(*_SIZES, activation="gelu")),
        replace(_MLP, name="mlp-batch32", batch_size=32),
        replace(_MLP, name="mlp-batch400", batch_size=400),
        replace(_MLP, name="mlp-deep", network=_perceptron(40, 100, 100, 100, 100, 10)),
        replace(_MLP, name="mlp-wide", network=_perceptron(40, 256, 256, 10)),
        replace(_MLP, name="mlp-adamw", base="adamw"),
        replace(_MLP, name="mlp-sgd", base="sgd"),
        replace(_MLP, name="conv", network=networks.seeded(networks.mnist1d_conv)),
        _DIGITS,
        replace(_DIGITS, name="digits-cnn", network=networks.seeded(networks.digits_cnn)),
        _FRIEDMAN,
        replace(_FRIEDMAN, name="diabetes", data=datasets.diabetes),
        Task(
            "transformer",
            datasets.python_topics,
            networks.seeded(networks.CharacterTransformer),
            cross_entropy,
            "adamw",
            16,
            1000,
            "loss",
        ),
    )
}

_BATCHES = "-batches-of-"


def with_batches_of(task: Task, size: int) -> str:
    """Returns the name by which ``find`` knows ``task`` with another batch size."""
    return f"{task.name}{_BATCHES}{size}"


def find(name: str) -> Task:
    """Returns a task of ``TASKS``, or one of them ``with_batches_of`` another size."""
    plain, _, size = name.partition(_BATCHES)
    return replace(TASKS[plain], name=name, batch_size=int(size)) if size else TASKS[plain]

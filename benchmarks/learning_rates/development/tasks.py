"""The tasks that settings are chosen on: ten of the standard set, and three of their own whose first slopes say little."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from .. import datasets, networks, tasks
from ..part import Part, Splits, in_order
from ..task import Task, perceptron

STANDARD = (
    "mlp-relu",
    "mlp-deep",
    "mlp-tanh",
    "mlp-gelu",
    "mlp-sgd",
    "mlp-batch32",
    "conv",
    "digits-mlp",
    "digits-cnn",
    "friedman",
)
_EXAMPLES, _TRAIN, _TRAIN_AND_VALIDATION = 6000, 4000, 5000
_LENGTH = 20  # of a sequence of the adding task


def plane_wave(seed: int) -> Splits:
    """Makes a wave on the plane, sin(6x) cos(4y) for x and y from -1 to 1: a perceptron sees nothing of it at first."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(_EXAMPLES, 2, generator=generator) * 2 - 1
    y = torch.sin(6 * x[:, :1]) * torch.cos(4 * x[:, 1:])
    return in_order(x, y / y.std(), _TRAIN, _TRAIN_AND_VALIDATION)


def autoencoder(seed: int) -> Splits:
    """Loads the digits, which are their own targets."""
    splits = datasets.digits(seed)
    parts = (Part(part.x, part.x) for part in (splits.train, splits.validation, splits.test))
    return Splits(*parts)


def adding(seed: int) -> Splits:
    """Makes the adding problem (Hochreiter and Schmidhuber 1997): the sum of the two marked of 20 numbers, one in each half."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(_EXAMPLES, _LENGTH, generator=generator)
    marks = torch.zeros(_EXAMPLES, _LENGTH)
    for first, end in ((0, _LENGTH // 2), (_LENGTH // 2, _LENGTH)):
        marked = torch.randint(first, end, (_EXAMPLES,), generator=generator)
        marks[torch.arange(_EXAMPLES), marked] = 1
    sums = (values * marks).sum(1, keepdim=True)
    y = (sums - sums.mean()) / sums.std()
    return in_order(torch.stack([values, marks], -1), y, _TRAIN, _TRAIN_AND_VALIDATION)


class GatedNetwork(nn.Module):
    """A gated recurrent network of width 32 with a linear layer on its last state. [B, T, 2] -> [B, 1]."""

    def __init__(self) -> None:
        super().__init__()
        self.recurrent = nn.GRU(2, 32, batch_first=True)
        self.out = nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps sequences [B, T, 2] to numbers [B, 1]."""
        states, _ = self.recurrent(x)
        found: Tensor = self.out(states[:, -1])
        return found


_OWN = (
    Task(
        "plane-wave",
        plane_wave,
        perceptron(2, 64, 64, 1, activation="tanh"),
        functional.mse_loss,
        "adam",
        128,
        2000,
        "mse",
    ),
    Task(
        "autoencoder",
        autoencoder,
        perceptron(64, 32, 8, 32, 64, activation="tanh"),
        functional.mse_loss,
        "adam",
        50,
        2000,
        "mse",
    ),
    Task(
        "adding",
        adding,
        networks.seeded(GatedNetwork),
        functional.mse_loss,
        "adam",
        50,
        1000,
        "mse",
    ),
)
TASKS: dict[str, Task] = {
    **{name: tasks.TASKS[name] for name in STANDARD},
    **{task.name: task for task in _OWN},
}

"""Nineteen more tasks, all of real data, that no rule was developed on; the data come inside packages."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn
from torch.nn import functional

from . import datasets, fine_tuning, new_networks, pixels, series, source_code, tabular
from .networks import seeded
from .part import Splits
from .task import Base, Task, cross_entropy, perceptron
from .text import ALPHABET


def _classification(
    name: str,
    data: Callable[[int], Splits],
    network: Callable[[int], nn.Module],
    outcomes: int,
    *,
    base: Base = "adam",
    batch_size: int = 64,
    steps: int = 1500,
) -> Task:
    return Task(name, data, network, cross_entropy, base, batch_size, steps, "accuracy", outcomes)


def _regression(
    name: str, data: Callable[[int], Splits], network: Callable[[int], nn.Module], base: Base
) -> Task:
    return Task(name, data, network, functional.mse_loss, base, 64, 1500, "mse")


_LETTER, _PENS, _SATELLITE, _MAGIC = (
    tabular.keel(name) for name in ("letter", "penbased", "satimage", "magic")
)
_PEN_NETWORK = perceptron(16, 64, 10)

TASKS_NEW = {
    task.name: task
    for task in (
        # Multinomial logistic regression: convex, as in the papers of D-Adaptation and Prodigy.
        _classification("letter-logistic", _LETTER, perceptron(16, 26), 26),
        _classification("pens-logistic", _PENS, perceptron(16, 10), 10, base="sgd"),
        _classification("splice-logistic", tabular.keel("splice"), perceptron(287, 3), 3),
        _classification("vehicle-logistic", tabular.keel("vehicle"), perceptron(18, 4), 4),
        _classification("letter-mlp", _LETTER, perceptron(16, 128, 128, 26), 26, batch_size=128),
        _classification("satellite-mlp", _SATELLITE, perceptron(36, 100, 100, 6), 6, base="adamw"),
        _classification("magic-mlp", _MAGIC, perceptron(10, 64, 64, 2, activation="gelu"), 2, base="sgd"),
        _classification("satellite-dropout", _SATELLITE, seeded(new_networks.satellite_dropout), 6),
        _regression("bikes", tabular.bikeshare, perceptron(57, 64, 64, 1), "adam"),
        _regression("wage", tabular.wage, perceptron(22, 64, 64, 1), "adamw"),
        _classification("leaves-conv", series.leaves, seeded(new_networks.leaf_conv), 6, batch_size=32),
        _classification("demand-conv", series.power_demand, seeded(new_networks.demand_conv), 2, batch_size=32),
        _classification("vowels-gru", series.vowels, seeded(new_networks.VowelGru), 9, batch_size=32, steps=1000),
        _classification(
            "optdigits-batchnorm",
            tabular.keel("optdigits"),
            seeded(new_networks.digits_normalised),
            10,
            steps=1000,
        ),
        replace(
            _regression("temple", pixels.temple, perceptron(2, 128, 128, 128, 3), "adam"), batch_size=128
        ),
        Task(
            "code-lstm",
            source_code.standard_library,
            seeded(new_networks.CharacterLstm),
            cross_entropy,
            "adam",
            16,
            1000,
            "loss",
            outcomes=ALPHABET,
        ),
        replace(
            _classification(
                "digits-finetune", fine_tuning.later_digits, fine_tuning.learnt, fine_tuning.CLASSES, base="adamw",
                batch_size=32, steps=1000,
            ),
            groups=fine_tuning.body_and_head,
        ),
        # Few and noisy examples: the loss, not the accuracy, shows how far a training overfits.
        replace(
            _classification("breast-cancer", datasets.breast_cancer, perceptron(30, 64, 64, 2), 2), measure="loss"
        ),
        # The one long run.
        _classification("pens-long", _PENS, _PEN_NETWORK, 10, batch_size=32, steps=20_000),
    )
}  # fmt: skip

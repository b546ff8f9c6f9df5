"""The fifteen tasks of the first comparison, by name."""

from __future__ import annotations

from dataclasses import replace

from torch.nn import functional

from . import datasets, networks
from .task import Task, cross_entropy, perceptron
from .text import ALPHABET

_SIZES = (40, 100, 100, 10)
_MLP = Task(
    "mlp-relu", datasets.mnist1d, perceptron(*_SIZES), cross_entropy, "adam", 100, 2000, "accuracy"
)
_DIGITS = Task(
    "digits-mlp",
    datasets.digits,
    perceptron(64, 64, 64, 10),
    cross_entropy,
    "adam",
    50,
    1500,
    "accuracy",
)
_FRIEDMAN = Task(
    "friedman",
    datasets.friedman,
    perceptron(10, 64, 64, 1),
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
        replace(_MLP, name="mlp-tanh", network=perceptron(*_SIZES, activation="tanh")),
        replace(_MLP, name="mlp-gelu", network=perceptron(*_SIZES, activation="gelu")),
        replace(_MLP, name="mlp-batch32", batch_size=32),
        replace(_MLP, name="mlp-batch400", batch_size=400),
        replace(_MLP, name="mlp-deep", network=perceptron(40, 100, 100, 100, 100, 10)),
        replace(_MLP, name="mlp-wide", network=perceptron(40, 256, 256, 10)),
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
            outcomes=ALPHABET,
        ),
    )
}

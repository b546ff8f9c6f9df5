"""What curvature is measured on: real data, networks as they begin and after some training, and one batch for each.

Nothing is downloaded: mnist1d is generated, scikit-learn carries the digits, and Python carries its manual's text. Training is
deterministic and takes seconds.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial

import torch
from torch import Tensor, nn

from benchmarks.curvature_networks import CharacterTransformer, digits_cnn
from metacurv.experiment import data as mnist1d
from metacurv.experiment.model import mlp
from metacurv.experiment.training import Batches

SEED = 0
MNIST1D_SAMPLES, MNIST1D_SEED = 5000, 42  # the experiment's
HIDDEN = (100, 100)
CONTEXT = 64

# The kind of network decides which peers can measure it.
MLP, CNN, TRANSFORMER = "mlp", "cnn", "transformer"


@dataclass(frozen=True, eq=False)  # the same where it is the same object: tensors do not compare
class Workload:
    """A network in some state and a batch; ``loss`` takes (model(x), y) and averages.

    ``piecewise_linear``: every activation is, so that the Hessian's trace is the GGN's.
    """

    name: str
    family: str
    trained: bool
    model: nn.Module
    x: Tensor
    y: Tensor
    piecewise_linear: bool
    loss: nn.CrossEntropyLoss

    @property
    def n(self) -> int:
        """Parameters."""
        return sum(p.numel() for p in self.model.parameters())

    def double(self) -> Workload:
        """A copy in float64."""
        x = self.x.double() if self.x.is_floating_point() else self.x
        return replace(self, model=copy.deepcopy(self.model).double(), x=x)


# (step) -> x, y of that training step
Batch = Callable[[int], tuple[Tensor, Tensor]]


def train(model: nn.Module, batch: Batch, *, steps: int, lr: float) -> None:
    """Adam, the learning rate falling linearly to a tenth."""
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, total_iters=steps)
    loss_function = nn.CrossEntropyLoss()
    for step in range(steps):
        x, y = batch(step)
        optimizer.zero_grad()
        loss_function(model(x), y).backward()
        optimizer.step()
        schedule.step()
    for p in model.parameters():
        p.grad = None


def shuffled(x: Tensor, y: Tensor, size: int) -> Batch:
    """Batches of ``size`` in the experiment's order."""
    order = Batches(len(x), size, SEED)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        chosen = order[step]
        return x[chosen], y[chosen]

    return batch


@cache
def perceptron(activation: str, trained: bool) -> Workload:
    """40-100-100-10 on mnist1d, batch 100; trained: to a loss of about 0.1 on that batch."""
    data = mnist1d.load(MNIST1D_SAMPLES, MNIST1D_SEED)
    model = mlp(mnist1d.N_FEATURES, HIDDEN, mnist1d.N_CLASSES, activation, seed=SEED)
    if trained:
        train(model, shuffled(data.x_train, data.y_train, 100), steps=4000, lr=2e-3)
    state = "trained" if trained else "untrained"
    return Workload(
        f"{activation} MLP, {state}",
        MLP,
        trained,
        model,
        data.x_train[:100],
        data.y_train[:100],
        activation == "relu",
        nn.CrossEntropyLoss(),
    )


@cache
def digits(trained: bool = True) -> Workload:
    """Two convolutions on scikit-learn's 8 x 8 digits, batch 100."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().view(-1, 1, 8, 8) / 16
    y = torch.from_numpy(labels).long()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = digits_cnn()
    if trained:
        train(model, shuffled(x, y, 100), steps=200, lr=2e-3)
    state = "trained" if trained else "untrained"
    return Workload(
        f"digits CNN, {state}", CNN, trained, model, x[:100], y[:100], True, nn.CrossEntropyLoss()
    )


@cache
def manual() -> tuple[Tensor, int]:
    """Python's manual as its own help() carries it, in ASCII: character numbers [N] and their count."""
    from pydoc_data.topics import topics

    text = "\n".join(topics[topic] for topic in sorted(topics))
    text = text.encode("ascii", "ignore").decode()
    alphabet = {character: i for i, character in enumerate(sorted(set(text)))}
    return torch.tensor([alphabet[character] for character in text]), len(alphabet)


def windows(text: Tensor, size: int) -> Batch:
    """Random stretches of CONTEXT characters, and what follows each of their characters."""

    def batch(step: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(step)
        starts = torch.randint(len(text) - CONTEXT - 1, (size,), generator=generator)
        taken = text[starts[:, None] + torch.arange(CONTEXT + 1)]
        return taken[:, :-1].contiguous(), taken[:, 1:].contiguous()

    return batch


@cache
def transformer(trained: bool = True) -> Workload:
    """Two blocks, width 64, two heads, 16 stretches of 64 characters."""
    text, vocabulary = manual()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = CharacterTransformer(vocabulary, context=CONTEXT)
    batch = windows(text, 16)
    if trained:
        train(model, batch, steps=250, lr=3e-3)
    x, y = batch(1_000_000)
    state = "trained" if trained else "untrained"
    return Workload(
        f"character transformer, {state}",
        TRANSFORMER,
        trained,
        model,
        x,
        y,
        False,
        nn.CrossEntropyLoss(),
    )


@cache
def gpt(steps: int = 300) -> Workload:
    """A small GPT of 1 M parameters: five blocks of width 128, four heads, tied embeddings, some steps on the manual."""
    text, vocabulary = manual()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        model = CharacterTransformer(
            vocabulary, width=128, heads=4, blocks=5, context=CONTEXT, tied=True
        )
    batch = windows(text, 16)
    train(model, batch, steps=steps, lr=1e-3)
    x, y = batch(1_000_000)
    loss = nn.CrossEntropyLoss()
    return Workload("GPT, 1 M, trained", TRANSFORMER, True, model, x, y, False, loss)


WORKLOADS: dict[str, Callable[[], Workload]] = {
    "relu MLP, untrained": partial(perceptron, "relu", False),
    "relu MLP, trained": partial(perceptron, "relu", True),
    "tanh MLP, untrained": partial(perceptron, "tanh", False),
    "tanh MLP, trained": partial(perceptron, "tanh", True),
    "digits CNN, trained": partial(digits, True),
    "character transformer, trained": partial(transformer, True),
}

"""Fine-tuning: a network that has learnt the digits 0 to 4 gets a new head and learns 5 to 9."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import platformdirs
import torch
from torch import nn

from metacurv.experiment.storage import read_checkpoint, write_checkpoint
from metacurv.experiment.training import Batches

from .datasets import digits
from .networks import digits_cnn, seeded
from .part import Part, Splits
from .task import cross_entropy

CLASSES = 5  # before, and afterwards
_EXAMPLES = 100
_STEPS, _BATCH_SIZE, _RATE = 400, 50, 3e-3


def later_digits(seed: int) -> Splits:
    """Loads the digits 5 to 9, as classes 0 to 4, split as the digits are; of the training part only 100 examples.

    With all of them hardly any test example is wrong, and a ratio of errors says nothing.
    """
    splits = _of_classes(digits(seed), lambda y: y >= CLASSES)
    few = Part(splits.train.x[:_EXAMPLES], splits.train.y[:_EXAMPLES])
    return replace(splits, train=few)


def learnt(seed: int) -> nn.Module:
    """Returns the network that has learnt the first digits, with a new head; it is trained once and kept in the cache.

    The seed, the version of torch and the constants above decide what it is.
    """
    path = _cache_folder() / f"digits-0-to-4-seed-{seed}-torch-{torch.__version__}.pt"
    model = _network(seed)
    state = read_checkpoint(path)
    if state is None:
        _train(model, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, dict(model.state_dict()))
    else:
        model.load_state_dict(state)
    head = _network(seed + 1)[-1]
    model[-1] = head
    return model


def body_and_head(model: nn.Module) -> list[dict[str, Any]]:
    """Returns two parameter groups: the layers that have learnt, and the new one."""
    *body, head = model.children()
    return [
        {"params": [parameter for layer in body for parameter in layer.parameters()]},
        {"params": list(head.parameters())},
    ]


def _cache_folder() -> Path:
    default = platformdirs.user_cache_dir("metacurv", appauthor=False)
    return Path(os.environ.get("METACURV_CACHE") or default)


def _network(seed: int) -> nn.Sequential:
    model = seeded(digits_cnn)(seed)
    assert isinstance(model, nn.Sequential)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model[-1] = nn.Linear(128, CLASSES)
    return model


def _train(model: nn.Module, seed: int) -> None:
    train = _of_classes(digits(seed), lambda y: y < CLASSES).train
    batches = Batches(len(train), _BATCH_SIZE, seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=_RATE)
    for step in range(_STEPS):
        rows = batches[step]
        optimizer.zero_grad()
        cross_entropy(model(train.x[rows]), train.y[rows]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def _of_classes(splits: Splits, wanted: Callable[[torch.Tensor], torch.Tensor]) -> Splits:
    def taken(part: Part) -> Part:
        rows = wanted(part.y)
        return Part(part.x[rows], part.y[rows] % CLASSES)

    return Splits(taken(splits.train), taken(splits.validation), taken(splits.test))

"""What is measured on: the network of the experiment, a wider one, and a batch for them.

Inputs and labels are random numbers: neither speed nor memory depends on their values.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

SEED = 0
BATCH = 100

loss_function = nn.CrossEntropyLoss()


def mlp(net: str) -> nn.Sequential:
    """A ReLU perceptron from its sizes, such as "40-100-100-10", with torch's initial weights from SEED."""
    sizes = [int(size) for size in net.split("-")]
    torch.manual_seed(SEED)
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def batch(net: str, size: int = BATCH) -> tuple[Tensor, Tensor]:
    """x: [size, inputs], y: [size] labels."""
    sizes = [int(width) for width in net.split("-")]
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(size, sizes[0], generator=generator)
    return x, torch.randint(0, sizes[-1], (size,), generator=generator)


def parameter_bytes(model: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in model.parameters())

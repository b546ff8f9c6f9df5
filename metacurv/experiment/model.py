"""The network: a plain multilayer perceptron whose initial weights follow from a seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
}


def mlp(
    n_inputs: int, hidden: Sequence[int], n_outputs: int, activation: str, *, seed: int
) -> nn.Sequential:
    """Perceptron with torch's default initialisation from ``seed``; leaves the global RNG alone."""
    sizes = [n_inputs, *hidden]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        layers: list[nn.Module] = []
        for fan_in, fan_out in pairwise(sizes):
            layers += [nn.Linear(fan_in, fan_out), ACTIVATIONS[activation]()]
        return nn.Sequential(*layers, nn.Linear(sizes[-1], n_outputs))

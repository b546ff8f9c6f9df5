"""Modules that several tests measure, or put around what they measure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def perceptron_around(middle: nn.Module) -> nn.Sequential:
    """4 -> 5 -> 3 with ``middle`` before its tanh."""
    return nn.Sequential(nn.Linear(4, 5), middle, nn.Tanh(), nn.Linear(5, 3))


class Checkpointed(nn.Module):
    """Runs again in a backward pass, with all that it changes.

    The inner layers' parameters are not in the graph of a reentrant checkpoint.
    """

    def __init__(self, inner: nn.Module, *, reentrant: bool = False) -> None:
        super().__init__()
        self.inner, self.reentrant = inner, reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.reentrant)


class TiedEmbedding(nn.Module):
    """The embedding is the output layer's weight.

    It meets itself where a token's own logit is read.
    """

    def __init__(self, entries: int, activation: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.embed = nn.Embedding(entries, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, entries)
        self.out.weight = self.embed.weight
        self.activation = activation

    def block(self, x: Tensor) -> Tensor:
        return self.activation(self.mix(x))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.block(self.embed(tokens)))

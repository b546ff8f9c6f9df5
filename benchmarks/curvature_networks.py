"""The networks that curvature is measured on: perceptrons (metacurv.experiment.model), a small convolutional one, and a
character transformer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def digits_cnn() -> nn.Sequential:
    """Two convolutions and a linear layer for 8 x 8 images, in modules that BackPACK and NNGeometry know.

    x: [B, 1, 8, 8] -> logits [B, 10].
    """
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(32 * 4 * 4, 10),
    )


class Attention(nn.Module):
    """Causal self-attention. Written out, since torch's fused kernel has neither a forward mode nor a double backward, and
    half of the peers need one of them."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.register_buffer("mask", torch.ones(context, context, dtype=torch.bool).triu(1))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, width] -> [B, T, width]."""
        batch, length, width = x.shape
        qkv = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # [B, heads, T, width / heads]
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        weights = scores.masked_fill(self.mask[:length, :length], -torch.inf).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).reshape(batch, length, width))


class Block(nn.Module):
    """Pre-norm: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, width: int, heads: int, context: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads, context)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, T, width] -> [B, T, width]."""
        x = x + self.attention(self.attention_norm(x))
        return x + self.mlp(self.mlp_norm(x))


class CharacterTransformer(nn.Module):
    """Learned positions, pre-norm blocks; a head of its own, or (``tied``) the embedding once more, as GPT-2 has it."""

    def __init__(
        self,
        vocabulary: int,
        *,
        width: int = 64,
        heads: int = 2,
        blocks: int = 2,
        context: int = 64,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.token = nn.Embedding(vocabulary, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads, context) for _ in range(blocks)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=not tied)
        if tied:
            nn.init.normal_(self.token.weight, std=0.02)
            self.head.weight = self.token.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: [B, T] -> logits [B, vocabulary, T], the layout of nn.CrossEntropyLoss for sequences."""
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.token(tokens) + self.position(positions)
        return self.head(self.norm(self.blocks(x))).transpose(1, 2)

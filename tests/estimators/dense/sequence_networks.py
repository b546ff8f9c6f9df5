"""Attention and recurrent networks: their GGN has every method, their Hessian only those in parameter space."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tests.estimators.dense.case import Table, by_token, general, labels
from tests.problems.problem import rand

SEQUENCES: Table = {}


@contextmanager
def plain_attention() -> Iterator[None]:
    """The fused kernel has no second derivative."""
    with sdpa_kernel(SDPBackend.MATH):
        yield


class SelfAttention(nn.Module):
    """Two heads of one feature, and projections of its own."""

    def __init__(self, *, causal: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(2, 6)
        self.out = nn.Linear(2, 3)
        self.causal = causal

    def forward(self, x: Tensor) -> Tensor:
        n, steps, _ = x.shape
        q, k, v = self.qkv(x).view(n, steps, 3, 2, 1).permute(2, 0, 3, 1, 4)
        with plain_attention():
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).reshape(n, steps, 2))


class MultiheadBlock(nn.Module):
    """x + attention(x), averaged over tokens."""

    def __init__(self, *, need_weights: bool) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(2, 2, batch_first=True)
        self.out = nn.Linear(2, 3)
        self.need_weights = need_weights

    def forward(self, x: Tensor) -> Tensor:
        with plain_attention():
            mixed, _ = self.attention(x, x, x, need_weights=self.need_weights)
        return self.out((x + mixed).mean(1))


class Encoder(nn.Module):
    """One layer of a transformer between an embedding with positions and an output."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.positions = nn.Parameter(torch.randn(4, 3))
        self.layer = nn.TransformerEncoderLayer(
            3, 1, dim_feedforward=3, dropout=0.0, norm_first=True, batch_first=True
        )
        self.out = nn.Linear(3, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        with plain_attention():
            return self.out(self.layer(self.embed(tokens) + self.positions))


class Cells(nn.Module):
    """A recurrent cell over [T, N, features], or [N, T, features] where ``batch_first``; the last state is read."""

    def __init__(self, cell: nn.RNNCellBase, *, batch_first: bool) -> None:
        super().__init__()
        self.cell = cell
        self.out = nn.Linear(cell.hidden_size, 3)
        self.batch_first = batch_first

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in x.unbind(1 if self.batch_first else 0):
            state = self.cell(step, state)
        return self.out(state[0] if isinstance(state, tuple) else state)


class Unrolled(nn.Module):
    """h <- activation(layer(x) + recurrent(h)), by layers that are called once a step."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 3)
        self.recurrent = nn.Linear(3, 3, bias=False)
        self.activation = activation
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            h = self.activation(self.layer(step) + self.recurrent(h))
        return self.out(h)


class RnnModule(nn.Module):
    """nn.RNN, whose weights no submodule's call shows."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(2, 3, batch_first=True)
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


def tokens() -> Tensor:
    return torch.tensor([[0, 3, 1, 1], [2, 2, 4, 0]])


SEQUENCES |= {
    "attention": lambda: general(
        SelfAttention(causal=False), 2 * rand(2, 4, 2), by_token, labels(2, 4)
    ),
    "causal_attention": lambda: general(
        SelfAttention(causal=True), 2 * rand(2, 4, 2), by_token, labels(2, 4)
    ),
    "multihead_attention": lambda: general(MultiheadBlock(need_weights=True), 2 * rand(3, 4, 2)),
    "multihead_attention_without_weights": lambda: general(
        MultiheadBlock(need_weights=False), 2 * rand(3, 4, 2)
    ),
    "transformer_encoder_layer": lambda: general(Encoder(), tokens(), by_token, tokens() % 3),
    "lstm_cell_unrolled": lambda: general(
        Cells(nn.LSTMCell(2, 2), batch_first=True), 2 * rand(4, 3, 2)
    ),
    "lstm_cell_with_time_first": lambda: general(
        Cells(nn.LSTMCell(2, 2), batch_first=False), 2 * rand(3, 4, 2), targets=labels(4)
    ),
    "gru_cell_unrolled": lambda: general(
        Cells(nn.GRUCell(2, 2), batch_first=True), 2 * rand(4, 3, 2)
    ),
    "rnn_cell_unrolled": lambda: general(
        Cells(nn.RNNCell(2, 3), batch_first=True), 2 * rand(4, 3, 2)
    ),
    "linear_layers_unrolled_tanh": lambda: general(Unrolled(nn.Tanh()), 2 * rand(4, 3, 2)),
    "linear_layers_unrolled_relu": lambda: general(Unrolled(nn.ReLU()), 2 * rand(4, 3, 2)),
    "rnn_module": lambda: general(RnnModule(), 2 * rand(4, 3, 2)),
}

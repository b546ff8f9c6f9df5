"""Weights that are tied, shared, frozen or unused."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.estimators.dense.case import Case, Table, by_token, elementwise, general, piecewise
from tests.problems.modules import TiedEmbedding
from tests.problems.problem import rand

SHARINGS: Table = {}


def embedding_tied_to_the_output() -> Case:
    tokens = torch.tensor([[0, 3, 1, 1], [2, 2, 4, 0]])
    return general(TiedEmbedding(5, torch.relu), tokens, by_token, tokens.roll(1, 1))


def twice_in_sequence(activation: Callable[[], nn.Module]) -> Case:
    shared = nn.Linear(3, 3)
    layers = [shared, activation(), shared, activation(), nn.Linear(3, 3)]
    return general(nn.Sequential(*layers), rand(6, 3))


def tied_weights_of_two_layers() -> Case:
    """Two modules, one weight: only the parameter shows it."""
    layers = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    layers[2].weight = layers[0].weight
    return general(layers, rand(6, 3))


def autoencoder_with_transposed_weight() -> Case:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.encoder(x).relu() @ self.encoder.weight

    x = rand(6, 4)
    return general(Model(), x, F.mse_loss, x)


class InParallel(nn.Module):
    """One layer for two inputs: as if they were two rows of one sample."""

    def __init__(self, activation: nn.Module, shared: nn.Module) -> None:
        super().__init__()
        self.shared = shared
        self.activation = activation
        self.out = nn.Linear(6, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        both = [self.activation(self.shared(x)) for x in (left, right)]
        return self.out(torch.cat(both, dim=-1))


def in_parallel(activation: nn.Module, family: Callable[..., Case]) -> Case:
    model = InParallel(activation, nn.Linear(3, 3))
    return family(model, (rand(5, 3), rand(5, 3)), may_refuse=True)


def shared_submodule_in_parallel() -> Case:
    shared = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    model = InParallel(nn.ReLU(), shared)
    return piecewise(model, (rand(5, 3), rand(5, 3)), may_refuse=True)


def shared_submodule_in_sequence() -> Case:
    shared = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))
    return general(nn.Sequential(shared, nn.ReLU(), shared), rand(6, 3))


SHARINGS |= {
    "embedding_tied_to_the_output": embedding_tied_to_the_output,
    "twice_in_sequence_identity": lambda: twice_in_sequence(nn.Identity),
    "twice_in_sequence_relu": lambda: twice_in_sequence(nn.ReLU),
    "twice_in_sequence_tanh": lambda: twice_in_sequence(nn.Tanh),
    "tied_weights_of_two_layers": tied_weights_of_two_layers,
    "autoencoder_with_transposed_weight": autoencoder_with_transposed_weight,
    "in_parallel_relu": lambda: in_parallel(nn.ReLU(), piecewise),
    "in_parallel_tanh": lambda: in_parallel(nn.Tanh(), elementwise),
    "shared_submodule_in_parallel": shared_submodule_in_parallel,
    "shared_submodule_in_sequence": shared_submodule_in_sequence,
}


def mlp(activation: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), activation, nn.Linear(4, 4), activation, nn.Linear(4, 3))


def frozen(*names: str, activation: nn.Module, family: Callable[..., Case]) -> Case:
    model = mlp(activation)
    for name in names:
        model.get_parameter(name).requires_grad_(False)
    return family(model, 2 * rand(6, 3))


def smooth_only_where_it_is_frozen() -> Case:
    """No live weight comes before the tanh, so nothing bends."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    model[0].requires_grad_(False)
    return piecewise(model, 2 * rand(6, 3), may_refuse=True)


class WithSpareLayer(nn.Module):
    """A layer that is never called, or whose output nothing uses."""

    def __init__(self, *, call: bool) -> None:
        super().__init__()
        self.first = nn.Linear(3, 4)
        self.spare = nn.Linear(3, 2)
        self.activation = nn.ReLU()
        self.last = nn.Linear(4, 3)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        if self.call:
            self.spare(x)
        return self.last(self.activation(self.first(x)))


def a_spare_layer(*, call: bool) -> Case:
    return piecewise(WithSpareLayer(call=call), rand(6, 3), may_refuse=True)


def nested_modules() -> Case:
    inner = nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.ReLU()))
    return piecewise(
        nn.Sequential(inner, nn.Sequential(nn.Sequential(nn.Linear(4, 3)))), rand(6, 3)
    )


SHARINGS |= {
    "frozen_first_layer": lambda: frozen(
        "0.weight", "0.bias", activation=nn.ReLU(), family=piecewise
    ),
    "frozen_middle_layer": lambda: frozen(
        "2.weight", "2.bias", activation=nn.Tanh(), family=elementwise
    ),
    "frozen_last_layer": lambda: frozen(
        "4.weight", "4.bias", activation=nn.Tanh(), family=elementwise
    ),
    "frozen_biases": lambda: frozen(
        "0.bias", "2.bias", "4.bias", activation=nn.GELU(), family=elementwise
    ),
    "frozen_weights": lambda: frozen(
        "0.weight", "2.weight", activation=nn.SiLU(), family=elementwise
    ),
    "smooth_only_where_it_is_frozen": smooth_only_where_it_is_frozen,
    "an_unused_layer": lambda: a_spare_layer(call=False),
    "a_layer_without_effect": lambda: a_spare_layer(call=True),
    "nested_modules": nested_modules,
}

"""How layers are put together: depth, residual adds, concatenation, dropout, views, slices, several inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.estimators.dense.case import Case, Lambda, Table, elementwise, labels, piecewise
from tests.problems.problem import rand

WIRINGS: Table = {}

Activation = Callable[[], nn.Module]


def deep(activation: Activation, family: Callable[..., Case]) -> Case:
    layers = [layer for _ in range(7) for layer in (nn.Linear(3, 3), activation())]
    return family(nn.Sequential(*layers, nn.Linear(3, 3)), rand(5, 3))


class Residual(nn.Module):
    """x + body(x)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def residual(activation: Activation, family: Callable[..., Case]) -> Case:
    def block() -> Residual:
        return Residual(nn.Sequential(nn.Linear(3, 3), activation(), nn.Linear(3, 3)))

    layers = [nn.Linear(3, 3), block(), activation(), block(), nn.Linear(3, 3)]
    return family(nn.Sequential(*layers), rand(5, 3))


def residual_around_an_activation() -> Case:
    """The curved path and the straight one start at one tensor."""
    layers = [nn.Linear(3, 4), Residual(nn.Tanh()), nn.Linear(4, 3)]
    return elementwise(nn.Sequential(*layers), 2 * rand(6, 3))


def residual_convolutions() -> Case:
    block = Residual(nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.SiLU()))
    layers = [nn.Conv2d(1, 2, 2), block, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)]
    return elementwise(nn.Sequential(*layers), rand(4, 1, 5, 5))


class Branches(nn.Module):
    """Two bodies, joined along the features."""

    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([body(x) for body in self.bodies], dim=1)


def concatenation() -> Case:
    branches = Branches(
        nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Sequential(nn.Linear(3, 2), nn.ReLU())
    )
    return elementwise(nn.Sequential(branches, nn.Linear(5, 3)), rand(6, 3))


def two_activations_of_one_layer() -> Case:
    branches = Branches(nn.Sigmoid(), nn.SiLU())
    return elementwise(nn.Sequential(nn.Linear(3, 4), branches, nn.Linear(8, 3)), 2 * rand(6, 3))


def dropout(layer: nn.Module, activation: Activation, family: Callable[..., Case]) -> Case:
    layers = [nn.Linear(3, 6), activation(), layer, nn.Linear(6, 4), activation(), layer]
    return family(nn.Sequential(*layers, nn.Linear(4, 3)).train(), 2 * rand(6, 3))


def dropout_of_channels() -> Case:
    layers = [nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Dropout2d(0.4), nn.Flatten(), nn.Linear(12, 3)]
    return piecewise(nn.Sequential(*layers).train(), rand(5, 1, 3, 3))


def dropout_by_function() -> Case:
    layers = [nn.Linear(3, 6), nn.ReLU(), Lambda(lambda h: F.dropout(h, 0.4)), nn.Linear(6, 3)]
    return piecewise(nn.Sequential(*layers), rand(6, 3), may_refuse=True)


def views_of_a_layer(view: Callable[[Tensor], Tensor], features: int) -> Case:
    """``view``: [N, 6] -> [N, features], moving or dropping elements."""
    layers = [nn.Linear(3, 6), nn.Tanh(), Lambda(view), nn.Linear(features, 3)]
    return elementwise(nn.Sequential(*layers), 2 * rand(6, 3))


VIEWS: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "permute": (lambda h: h.view(-1, 2, 3).permute(0, 2, 1).flatten(1), 6),
    "chunk": (lambda h: torch.add(*h.chunk(2, dim=1)), 3),
    "split": (lambda h: h.split([2, 4], dim=1)[1], 4),
    "slice": (lambda h: h[:, 1::2], 3),
    "repeat": (lambda h: torch.cat([h, h[:, :2]], 1), 8),
    "pad": (lambda h: F.pad(h, (1, 1)), 8),
    "index": (lambda h: h[:, torch.tensor([5, 0, 0])], 3),
    "flip_and_scale": (lambda h: 3 * h.flip(1) - 1, 6),
}


def rows_in_another_order() -> Case:
    """The second layer sees the samples backwards: no interaction, but row n is not sample n."""
    layers = [nn.Linear(3, 4), nn.Tanh(), Lambda(lambda h: h.flip(0)), nn.Linear(4, 3)]
    return elementwise(nn.Sequential(*layers), rand(5, 3), may_refuse=True)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(3, 4)
        self.right = nn.Linear(2, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.out((self.left(left) + self.right(right)).relu())


def two_inputs() -> Case:
    return piecewise(TwoInputs(), (rand(5, 3), rand(5, 2)), may_refuse=True)


def sequence_before_batch() -> Case:
    """Inputs and inner activations are [T, N, features]; only the output has samples first."""
    layers = [nn.Linear(3, 4), nn.Tanh(), Lambda(lambda h: h.sum(0)), nn.Linear(4, 3)]
    return elementwise(nn.Sequential(*layers), rand(4, 5, 3), targets=labels(5), may_refuse=True)


def a_single_sample() -> Case:
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3))
    return elementwise(layers, rand(1, 4))


def a_single_output() -> Case:
    layers = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    return piecewise(layers, rand(6, 4), F.mse_loss, rand(6, 1))


def a_single_class() -> Case:
    """Cross-entropy of one class is 0 everywhere, and so is its curvature."""
    layers = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    return elementwise(layers, rand(6, 4), targets=labels(6, classes=1))


def a_single_sample_with_a_single_output() -> Case:
    layers = nn.Sequential(nn.Linear(4, 4), nn.SiLU(), nn.Linear(4, 1))
    return elementwise(layers, rand(1, 4), F.mse_loss, rand(1, 1))


def outputs_without_a_feature_dimension() -> Case:
    layers = [nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)]
    return elementwise(nn.Sequential(*layers), rand(6, 4), F.mse_loss, rand(6))


WIRINGS |= {
    "deep_relu": lambda: deep(nn.ReLU, piecewise),
    "deep_tanh": lambda: deep(nn.Tanh, elementwise),
    "residual_relu": lambda: residual(nn.ReLU, piecewise),
    "residual_gelu": lambda: residual(nn.GELU, elementwise),
    "residual_around_an_activation": residual_around_an_activation,
    "residual_convolutions": residual_convolutions,
    "concatenation": concatenation,
    "two_activations_of_one_layer": two_activations_of_one_layer,
    "dropout_relu": lambda: dropout(nn.Dropout(0.3), nn.ReLU, piecewise),
    "dropout_tanh": lambda: dropout(nn.Dropout(0.3), nn.Tanh, elementwise),
    "alpha_dropout": lambda: dropout(nn.AlphaDropout(0.3), nn.SELU, elementwise),
    "dropout_of_channels": dropout_of_channels,
    "dropout_by_function": dropout_by_function,
    **{name: lambda v=view: views_of_a_layer(*v) for name, view in VIEWS.items()},
    "rows_in_another_order": rows_in_another_order,
    "two_inputs": two_inputs,
    "sequence_before_batch": sequence_before_batch,
    "a_single_sample": a_single_sample,
    "a_single_output": a_single_output,
    "a_single_class": a_single_class,
    "a_single_sample_with_a_single_output": a_single_sample_with_a_single_output,
    "outputs_without_a_feature_dimension": outputs_without_a_feature_dimension,
}

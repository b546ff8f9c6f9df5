"""Perceptrons with every activation, called as modules, functions and methods, and some that are not what they seem."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.estimators.dense.case import Case, Lambda, Table, elementwise, general, piecewise
from tests.problems.problem import rand

ACTIVATIONS: Table = {}

Activation = Callable[[], nn.Module]


def mlp(activation: Activation) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(3, 4), activation(), nn.Linear(4, 4), activation(), nn.Linear(4, 3)
    )


def perceptron(family: Callable[..., Case], activation: Activation, **flags: bool) -> Case:
    # Inputs of some size, so that bounded activations reach their flat parts.
    return family(mlp(activation), 2 * rand(6, 3), **flags)


CORNERS: dict[str, Activation] = {
    "relu": nn.ReLU,
    "relu_in_place": lambda: nn.ReLU(inplace=True),
    "leaky_relu": lambda: nn.LeakyReLU(0.2),
    "leaky_relu_negative_slope_below_0": lambda: nn.LeakyReLU(-0.5),
    "hardtanh": nn.Hardtanh,
    "relu6": nn.ReLU6,
    "identity": nn.Identity,
}
LEARNED: dict[str, Activation] = {
    "prelu_shared_slope": nn.PReLU,
    "prelu_slope_per_channel": lambda: nn.PReLU(4),
}
SMOOTH: dict[str, Activation] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "softplus_beta_3": lambda: nn.Softplus(beta=3),
    "elu": nn.ELU,
    "elu_alpha_2": lambda: nn.ELU(alpha=2),
    "mish": nn.Mish,
    "celu": lambda: nn.CELU(alpha=0.7),
    "selu": nn.SELU,
}
# Element by element too, but no list of activations is complete.
RARE: dict[str, Activation] = {
    "softsign": nn.Softsign,
    "logsigmoid": nn.LogSigmoid,
    "hardswish": nn.Hardswish,
    "elu_in_place": lambda: nn.ELU(inplace=True),
    "sine": lambda: Lambda(torch.sin),
    "square": lambda: Lambda(torch.square),
    "swish_by_hand": lambda: Lambda(lambda x: x * x.sigmoid()),
}
CORNERS_BY_CALL: dict[str, Activation] = {
    "relu_function": lambda: Lambda(F.relu),
    "relu_method": lambda: Lambda(lambda x: x.relu()),
    "clamp_method": lambda: Lambda(lambda x: x.clamp(min=0)),
    "abs_function": lambda: Lambda(torch.abs),
    "hardshrink_function": lambda: Lambda(F.hardshrink),
    "softshrink_function": lambda: Lambda(F.softshrink),
}
SMOOTH_BY_CALL: dict[str, Activation] = {
    "tanh_function": lambda: Lambda(torch.tanh),
    "gelu_function": lambda: Lambda(F.gelu),
    "sigmoid_method": lambda: Lambda(lambda x: x.sigmoid()),
}


def _register(activations: dict[str, Activation], family: Callable[..., Case], **flags) -> None:
    for name, activation in activations.items():
        ACTIVATIONS[name] = lambda a=activation: perceptron(family, a, **flags)


_register(CORNERS, piecewise)
_register(LEARNED, piecewise)
_register(SMOOTH, elementwise)
_register(RARE, elementwise, may_refuse=True)
_register(CORNERS_BY_CALL, piecewise, may_refuse=True)
_register(SMOOTH_BY_CALL, elementwise, may_refuse=True)


class ReLU(nn.ReLU):
    """By its name and its base a ReLU; what it does is something else."""

    def forward(self, x: Tensor) -> Tensor:
        return F.softplus(x)


class BentLinear(nn.Linear):
    """A Linear by its base, with a nonlinearity inside."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def activation_in_the_model() -> Case:
    """Between known layers the model's own forward calls functions that no module shows."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4)
            self.second = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.tanh(self.first(x)))

    return elementwise(Model(), 2 * rand(6, 3), may_refuse=True)


def activation_in_a_hook() -> Case:
    model = mlp(nn.ReLU)
    model[0].register_forward_hook(lambda module, args, output: output.tanh())
    return elementwise(model, 2 * rand(6, 3), may_refuse=True)


def bent_linear() -> Case:
    layers = nn.Sequential(BentLinear(3, 4), nn.ReLU(), nn.Linear(4, 3))
    return elementwise(layers, 2 * rand(6, 3), may_refuse=True)


def gated_linear_units() -> Case:
    """x * sigmoid(y) bends in two variables at once."""
    return general(nn.Sequential(nn.Linear(3, 8), nn.GLU(), nn.Linear(4, 3)), 2 * rand(6, 3))


def softmax_inside() -> Case:
    return perceptron(general, lambda: nn.Softmax(-1))


def corners_and_curves() -> Case:
    layers = nn.Sequential(
        nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.LeakyReLU()
    )
    return elementwise(layers.append(nn.Linear(4, 3)), 2 * rand(6, 3))


ACTIVATIONS |= {
    "false_relu": lambda: perceptron(elementwise, ReLU, may_refuse=True),
    "corners_and_curves": corners_and_curves,
    "bent_linear": bent_linear,
    "activation_in_the_model": activation_in_the_model,
    "activation_in_a_hook": activation_in_a_hook,
    "gated_linear_units": gated_linear_units,
    "softmax_inside": softmax_inside,
}

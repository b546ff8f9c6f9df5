"""Stacks of layers that a probe is pushed through, one for each operation with a rule: ``STACKS``, name -> ``Problem``."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.problems.problem import Problem, Values, classify, leaf, rand

STACKS: dict[str, Callable[[], Problem]] = {}

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": F.relu,
    "leaky_relu": lambda z: F.leaky_relu(z, 0.3),
    "relu6": lambda z: F.relu6(3 * z),
    "hardtanh": lambda z: F.hardtanh(z, -0.5, 0.7),
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": F.gelu,
    "gelu of tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "softplus": lambda z: F.softplus(z, beta=2),
    "elu": F.elu,
    "selu": F.selu,
    "celu": lambda z: F.celu(z, 1.5),
    "mish": F.mish,
    "negated": lambda z: -z.tanh(),
    "scaled by a number": lambda z: 1.7 * z.relu() / 0.3,
}


def stack(name: str) -> Callable[[Callable[[], Problem]], Callable[[], Problem]]:
    def register(make: Callable[[], Problem]) -> Callable[[], Problem]:
        STACKS[name] = make
        return make

    return register


def three_layers(
    activation: Callable[[Tensor], Tensor],
    criterion: Callable[[Tensor], Tensor] = classify,
    x: Tensor | None = None,
) -> Problem:
    x = rand(6, 4) if x is None else x
    params = {"w": leaf(5, 4), "b": leaf(5), "u": leaf(5, 5), "v": leaf(3, 5), "c": leaf(3)}

    def loss(p: Values) -> Tensor:
        h = activation(F.linear(x, p["w"], p["b"]))
        h = activation(F.linear(h, p["u"]))
        return criterion(F.linear(h, p["v"], p["c"]))

    return Problem(params, loss)


for _name, _activation in ACTIVATIONS.items():
    stack(_name)(lambda activation=_activation: three_layers(activation))


@stack("dropout mask")
def dropout_mask():
    masks = [(rand(6, 5) > 0) / 0.5 for _ in range(2)]
    return three_layers(lambda z: z.tanh() * masks[0] / (masks[1] + 1))


@stack("sequence")
def sequence():
    return three_layers(torch.tanh, x=rand(2, 3, 4))


@stack("flattened in between")
def flattened():
    x, params = rand(4, 3), {"w": leaf(2, 3), "b": leaf(2), "v": leaf(3, 4)}

    def loss(p: Values) -> Tensor:
        h = F.linear(x, p["w"], p["b"]).tanh().view(2, 2, 2)
        return classify(F.linear(h.reshape(2, 4), p["v"]))

    return Problem(params, loss)


@stack("weights on the right")
def weights_on_the_right():
    x, params = rand(6, 4), {"w": leaf(4, 5), "v": leaf(5, 3), "c": leaf(3)}
    return Problem(params, lambda p: classify(torch.addmm(p["c"], (x @ p["w"]).sigmoid(), p["v"])))


@stack("frozen layers in between")
def frozen_layers():
    x = rand(6, 4)
    params = {"w": leaf(5, 4), "u": rand(5, 5), "b": rand(5), "m": rand(5, 5), "v": leaf(3, 5)}

    def loss(p: Values) -> Tensor:
        h = F.linear(F.linear(x, p["w"]).tanh(), p["u"], p["b"]).sigmoid()
        return classify(F.linear((h @ p["m"]).tanh(), p["v"]))

    return Problem(params, loss)


@stack("a frozen first layer")
def frozen_first_layer():
    x, params = rand(6, 4), {"u": rand(5, 4), "w": leaf(5, 5), "v": leaf(3, 5)}
    return Problem(
        params,
        lambda p: classify(F.linear(F.linear(F.linear(x, p["u"]).tanh(), p["w"]).relu(), p["v"])),
    )


@stack("inputs that require a gradient")
def inputs_with_gradients():
    return three_layers(torch.tanh, x=rand(6, 4).requires_grad_())


@stack("a weight and a bias used twice")
def used_twice():
    x, params = rand(6, 4), {"w": leaf(4, 4), "b": leaf(4), "v": leaf(3, 4)}

    def loss(p: Values) -> Tensor:
        h = F.linear(x, p["w"], p["b"]).tanh()
        return classify(F.linear(F.linear(h, p["w"], p["b"]).tanh(), p["v"]))

    return Problem(params, loss)


@stack("two towers")
def two_towers():
    """Two chains that meet in the head, which bends each with the other."""
    x, y, params = rand(6, 4), rand(6, 3), {"w": leaf(5, 4), "b": leaf(5), "u": leaf(5, 3)}
    return Problem(
        params,
        lambda p: (
            (F.linear(x, p["w"], p["b"]).tanh() * F.linear(y, p["u"])).sum(1).sigmoid().log().mean()
        ),
    )


CRITERIA: dict[str, Callable[[Tensor], Tensor]] = {
    "squared error": lambda z: F.mse_loss(z, z.detach().cos()),
    "binary cross-entropy": lambda z: F.binary_cross_entropy_with_logits(z, z.detach().sigmoid()),
    "summed cross-entropy": lambda z: F.cross_entropy(
        z, torch.arange(6) % 3, weight=torch.tensor([1.0, 2.0, 0.5]).double(), reduction="sum"
    ),
    "label smoothing": lambda z: F.cross_entropy(z, torch.arange(6) % 3, label_smoothing=0.2),
    "log-softmax of the last dimension": lambda z: F.nll_loss(
        z.log_softmax(-1), torch.arange(6) % 3
    ),
    "log-softmax of dimension 1": lambda z: F.nll_loss(z.log_softmax(1), torch.arange(6) % 3),
    "times a complex number": lambda z: (z * (1 + 2j)).abs().square().mean(),
    "soft labels": lambda z: F.cross_entropy(z, z.detach().softmax(1)),
    "ignored labels": lambda z: F.cross_entropy(z, torch.tensor([0, 1, -100, 2, -100, 1])),
    "a function of the cross-entropy": lambda z: F.cross_entropy(z, torch.arange(6) % 3).exp(),
    "log-probabilities": lambda z: (z.log_softmax(0) * z.detach().sin()).sum().square(),
    "negative curvature": lambda z: z.cos().sum(),
}
for _name, _criterion in CRITERIA.items():
    stack(_name)(lambda criterion=_criterion: three_layers(torch.tanh, criterion))

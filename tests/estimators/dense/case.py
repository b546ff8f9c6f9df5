"""A tiny model with a loss in float64, and what each method of ``estimate_trace`` can do with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Dropout's mask: set before every forward pass that is compared with another.
FORWARD_SEED = 7


@dataclass(frozen=True)
class Case:
    """loss_fn(model(inputs), targets), and what is known about it.

    ``piecewise_linear``: each output is piecewise linear in each single parameter, the others held, so that the Hessian has
    the diagonal of the GGN. A weight used twice in sequence breaks this, twice in parallel does not.
    ``activation_hessian``: whatever bends does so element by element, and no weight meets itself in sequence.
    ``samples_interact``: inside the model. ``loss_couples_samples``: only in the loss.
    ``may_refuse``: the Hessian flags hold, but not for a reason that the list of modules shows; an honest refusal is fine.
    ``may_serve``: they do not hold, and yet a method that knows a softmax, or elementwise functions of a weight, can be right.
    """

    model: nn.Module
    loss_fn: Callable[[Tensor, Any], Tensor]
    inputs: Any
    targets: Any
    piecewise_linear: bool = False
    activation_hessian: bool = False
    samples_interact: bool = False
    loss_couples_samples: bool = False
    may_refuse: bool = False
    may_serve: bool = False

    @property
    def live(self) -> dict[str, nn.Parameter]:
        """Parameters that require a gradient, tied ones once."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def output(self) -> Tensor:
        """With the same random numbers every time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(FORWARD_SEED)
            return self.model(*self.arguments)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """``inputs`` as positional arguments, which a tuple means."""
        return self.inputs if isinstance(self.inputs, tuple) else (self.inputs,)

    def loss(self) -> Tensor:
        return self.loss_fn(self.output(), self.targets)


Table = dict[str, Callable[[], Case]]


def build(make: Callable[[], Case], seed: int = 1) -> Case:
    """The same numbers every time, without touching the global random state.

    All parameters are moved a little: ones and zeros of fresh norms and biases would hide a forgotten factor, and the small
    weights of fresh layers would leave activations almost linear.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        case = make()
        case.model.double()
        with torch.no_grad():
            for p in case.model.parameters():
                p.add_(0.4 * torch.randn_like(p))
    return case


def piecewise(
    model: nn.Module, inputs: Any, loss_fn=F.cross_entropy, targets=None, **flags
) -> Case:
    """Linear layers and activations with corners only."""
    known = {"piecewise_linear": True, "activation_hessian": True}
    return general(model, inputs, loss_fn, targets, **{**known, **flags})


def elementwise(
    model: nn.Module, inputs: Any, loss_fn=F.cross_entropy, targets=None, **flags
) -> Case:
    """Smooth activations, element by element."""
    return general(model, inputs, loss_fn, targets, **{"activation_hessian": True, **flags})


def general(model: nn.Module, inputs: Any, loss_fn=F.cross_entropy, targets=None, **flags) -> Case:
    """Anything. Without targets: labels 0, 1, 2, 0, ... for the samples, or the tokens, of three classes."""
    if targets is None:
        targets = labels(len(inputs[0] if isinstance(inputs, tuple) else inputs))
    return Case(model, loss_fn, inputs, targets, **flags)


def labels(*shape: int, classes: int = 3) -> Tensor:
    """Class numbers in turn, every one of them present."""
    return (torch.arange(torch.Size(shape).numel()) % classes).view(shape)


def by_token(output: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of [N, T, C] against labels [N, T]."""
    return F.cross_entropy(output.flatten(0, -2), targets.flatten())


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)

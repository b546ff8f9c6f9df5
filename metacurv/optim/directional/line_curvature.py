"""Slope and curvature of a loss along lines in parameter space, from the model's outputs at points on them.

    slope n = grad L . J u,   curvature d = J u . H_out J u          u the direction, J the Jacobian of the model

J u is the difference of outputs over the distance, so no pass goes backward through the model; H_out J u is a double backward
through the loss alone. d is the curvature of the generalized Gauss-Newton matrix (Schraudolph 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metacurv import _validate
from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.problem.elsewhere import elsewhere
from metacurv.estimators.problem.errors import explain_differentiation_errors

Leaves = list[Tensor]


@dataclass(frozen=True)
class LineReading:
    """Loss, slopes and curvatures of one batch along S lines, in ``numbers``: [1 + 2 S] float64 on the outputs' device.

    ``curvature[s]`` is u_s . G (sum over r of w_r u_r) / w_s, with w the weights: u . G u for a single line.
    """

    numbers: Tensor

    @property
    def loss(self) -> Tensor:
        """The loss, 0-dim."""
        return self.numbers[0]

    @property
    def slope(self) -> Tensor:
        """The slopes along the lines, [S]."""
        return self.numbers[1 : 1 + len(self.numbers) // 2]

    @property
    def curvature(self) -> Tensor:
        """The curvatures along the lines, [S]."""
        return self.numbers[1 + len(self.numbers) // 2 :]


class OutputLoss:
    """The loss of a batch as a function of the floating tensors in the model's output, whatever holds them."""

    def __init__(self, loss_fn: Callable[[Any, Any], Tensor], targets: Any) -> None:
        self._loss_fn, self._targets = loss_fn, targets
        self._spec: pytree.TreeSpec | None = None
        self._others: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        # Copying a form makes torch warn, and the next output brings one.
        return {**self.__dict__, "_spec": None, "_others": []}

    def leaves(self, output: Any) -> Leaves:
        """Returns the floating tensors of ``output``, and remembers the form in which they go to the loss."""
        flat, self._spec = pytree.tree_flatten(output)
        floating = [isinstance(x, Tensor) and x.is_floating_point() for x in flat]
        self._others = [None if is_leaf else x for x, is_leaf in zip(flat, floating, strict=True)]
        self._places = [i for i, is_leaf in enumerate(floating) if is_leaf]
        if not self._places:
            raise TypeError(
                f"model must return a floating tensor, or a structure with one, got {_validate.describe(output)}"
            )
        return [flat[i] for i in self._places]

    def at(self, leaves: Leaves) -> Tensor:
        """Returns the loss of an output of the form last seen, with ``leaves`` in it."""
        assert self._spec is not None
        flat = list(self._others)
        for place, leaf in zip(self._places, leaves, strict=True):
            flat[place] = leaf
        loss = self._loss_fn(pytree.tree_unflatten(flat, self._spec), self._targets)
        if any(loss is leaf for leaf in leaves):
            raise ValueError(
                "loss_fn must compute the loss from the model's output, got a part of the output itself, such as a loss that "
                "the model has computed: compute it from the logits, as in F.cross_entropy(output.logits, targets)"
            )
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            got = tuple(loss.shape) if isinstance(loss, Tensor) else _validate.describe(loss)
            more = (
                ": where the batch is a mapping, loss_fn gets its labels and the model does not, so compute the loss from the "
                "logits"
                if loss is None
                else ""
            )
            raise ValueError(f"loss_fn must return a scalar tensor, got {got}{more}")
        return loss.reshape(())


def read_lines(
    loss: OutputLoss, centre: Leaves, tangents: Sequence[Leaves], weights: Tensor
) -> LineReading:
    """Reads slope and curvature at ``centre`` along lines.

    Args:
        loss: the batch's loss as a function of the output.
        centre: the outputs where the lines meet.
        tangents: the derivatives of the outputs along each of the S lines.
        weights: [S] float64, > 0.
    """
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in centre]
        value = loss.at(leaves)
        if value.grad_fn is not None:
            check_differentiable([value.grad_fn], leaves, again=lambda: loss.at(elsewhere(leaves)))
        gradients = _gradients(value, leaves, create_graph=True)
        slope = torch.stack([_dot(gradients, tangent) for tangent in tangents])
        summed = tangents[0]
        if len(tangents) > 1:
            summed = [
                sum(
                    (w.to(x.dtype) * x for w, x in zip(weights, parts, strict=True)),
                    torch.zeros_like(parts[0]),
                )
                for parts in zip(*tangents, strict=True)
            ]
        along = _dot(gradients, summed)
        products = (
            _gradients(along, leaves)
            if along.requires_grad
            else [torch.zeros_like(x) for x in leaves]
        )
    curvature = torch.stack([_dot(products, tangent) for tangent in tangents])
    if len(tangents) > 1:
        curvature = curvature / weights
    loss_of_batch = value.detach().to(torch.float64).reshape(1)
    return LineReading(torch.cat([loss_of_batch, slope.detach(), curvature]))


def _gradients(value: Tensor, leaves: Leaves, *, create_graph: bool = False) -> Leaves:
    order = "first" if create_graph else "second"
    with explain_differentiation_errors(f"the {order} derivative of loss_fn in the model's output"):
        return list(
            torch.autograd.grad(
                value, leaves, create_graph=create_graph, allow_unused=True, materialize_grads=True
            )
        )


def _dot(a: Leaves, b: Leaves) -> Tensor:
    parts = [(x * y).sum(dtype=torch.float64) for x, y in zip(a, b, strict=True)]
    return parts[0] if len(parts) == 1 else torch.stack(parts).sum()

"""The loss of a batch as a function of the tensors in a model's output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from metacurv import _validate

Leaves = list[Tensor]


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

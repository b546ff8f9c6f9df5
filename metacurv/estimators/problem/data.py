"""Holds what is measured, a model's loss on all the batches that the user gave, and checks these arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

from torch import nn

from metacurv import _validate
from metacurv.estimators.problem.batches import adds_up, batches, checked_size
from metacurv.estimators.problem.model_loss import LossFunction, ModelLoss
from metacurv.estimators.problem.parameters import NumberedParameter

Kind = Literal["hessian", "ggn"]


@dataclass
class Data:
    """The batches of a measurement.

    ``inputs``, ``targets``, ``output`` and ``batch_size``: see ``estimate_trace``. ``again``: True where they are gone through
    more than once, so that those of an iterator are kept.
    """

    model: nn.Module
    loss_fn: LossFunction
    inputs: Any
    targets: Any
    output: Callable[[Any], Any] | None
    batch_size: int | Callable[[Any], int] | None
    again: bool = False

    @property
    def is_sum(self) -> bool:
        """Tells whether the loss is a sum over examples, so that batches add up."""
        return adds_up(self.loss_fn)

    def each(self, parameters: list[NumberedParameter]) -> Iterator[tuple[int, ModelLoss]]:
        """Yields the number of examples of each batch, by which a mean over batches is weighted, and the batch's loss."""
        if self.again and self.targets is None and isinstance(self.inputs, Iterator):
            self.inputs = list(batches(self.inputs, None))
        for index, (inputs, targets) in enumerate(batches(self.inputs, self.targets)):
            size = checked_size(inputs, index, self.is_sum, self.batch_size)
            yield (
                size,
                ModelLoss(self.model, self.loss_fn, inputs, targets, parameters, pick=self.output),
            )


def check_matrix(model: object, loss_fn: object, kind: object) -> None:
    """Raises TypeError or ValueError unless the three name a curvature matrix."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {_validate.describe(model)}")
    _validate.loss_function(loss_fn)
    if kind not in get_args(Kind):
        raise ValueError(f"kind must be 'hessian' or 'ggn', got {_validate.describe(kind)}")

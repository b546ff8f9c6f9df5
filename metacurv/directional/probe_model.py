"""The user's model and loss as the rule calls them: in eval mode, without a trace in modes, buffers or random state."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.estimators.line_reading import Leaves, OutputLoss
from metacurv.estimators.model_loss import call_model
from metacurv.estimators.precision import wide
from metacurv.estimators.state import StateKept
from metacurv.group_parameters import check_model_has_some
from metacurv.ranks import Ranks


class ProbeModel:
    """A model and its loss, to be evaluated on probe batches.

    Args:
        model, loss_fn: see ``MetaCurvatureLR``.
        base: whose parameters the model must have some of.

    Raises:
        TypeError, ValueError: a wrong argument.
    """

    def __init__(
        self, model: Any, loss_fn: Callable[[Any, Any], Tensor] | None, base: Optimizer
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"model must be a torch.nn.Module with rule='directional', got {_validate.describe(model)}"
            )
        _validate.loss_function(loss_fn)
        check_model_has_some(model, (p for group in base.param_groups for p in group["params"]))
        self.model = model
        self.loss_fn = loss_fn
        self.ranks = Ranks(model)

    def batch(self, pair: tuple[Any, Any], device: torch.device) -> ProbeBatch:
        """The loss on one batch."""
        assert self.loss_fn is not None
        return ProbeBatch(self, pair[0], OutputLoss(self.loss_fn, pair[1]), device)


class ProbeBatch:
    """A batch, and what the model makes of it with its parameters as they are when asked."""

    def __init__(
        self, owner: ProbeModel, inputs: Any, loss: OutputLoss, device: torch.device
    ) -> None:
        self._model, self._inputs, self.loss, self._device = owner.model, inputs, loss, device
        self.ranks = owner.ranks
        self._modules = list(owner.model.modules())
        loss_fn = owner.loss_fn
        self._loss_modules = list(loss_fn.modules()) if isinstance(loss_fn, nn.Module) else []
        self._memory = {_memory(p) for p in owner.model.parameters()}

    @torch.no_grad()
    def output(self) -> Leaves:
        """The floating tensors that the model returns; every pass sees the same random numbers."""
        with (
            _errors_say_where(),
            torch.inference_mode(False),
            torch.no_grad(),
            StateKept(self._modules, self._device),
            _eval_mode(self._modules),
        ):
            leaves = self.loss.leaves(call_model(self._model, self._inputs))
            # A parameter that is the output would move with the next pass.
            return [wide(x.clone() if _memory(x) in self._memory else x) for x in leaves]

    @torch.no_grad()
    def value(self) -> Tensor:
        """The loss, 0-dim float64."""
        leaves = self.output()
        with self.loss_quiet():
            return self.loss.at(leaves).to(torch.float64)

    @contextmanager
    def loss_quiet(self) -> Iterator[None]:
        """What the loss draws or keeps stays as it was, too."""
        with (
            _errors_say_where(),
            StateKept(self._loss_modules, self._device),
            _eval_mode(self._loss_modules),
        ):
            yield


@contextmanager
def _errors_say_where() -> Iterator[None]:
    """What the user's model or loss raises looks like an error of the training step, which it is not."""
    try:
        yield
    except Exception as error:
        if hasattr(error, "add_note"):  # from Python 3.11 on
            error.add_note(
                "metacurv: raised in evaluating loss_fn(model(inputs), targets), the output first, on a batch of probe, with "
                "the model in eval mode, which MetaCurvatureLR does to measure a step; not by the training step itself"
            )
        raise


@contextmanager
def _eval_mode(modules: list[nn.Module]) -> Iterator[None]:
    """Not by ``model.eval()``, which a model may have overridden to do more, nor by ``Module.__setattr__``, which is slow."""
    training = [module for module in modules if module.training]
    for module in training:
        object.__setattr__(module, "training", False)
    try:
        yield
    finally:
        for module in training:
            object.__setattr__(module, "training", True)


def _memory(x: Tensor) -> int:
    """The address of the storage; by itself asking for that is slower."""
    return x.data_ptr() - int(x.storage_offset()) * x.element_size()

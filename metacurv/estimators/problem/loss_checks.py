"""Checks that every estimator makes of a loss, and hooks that none of them lets run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.parameters import NumberedParameter


def check_loss(loss: Tensor, *, finite: bool = True) -> None:
    """Raises unless ``loss`` is a real scalar with a graph (and a finite value, which costs a host sync on CUDA)."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must be a Tensor, got {_validate.describe(loss)}")
    if loss.numel() != 1:
        raise ValueError(f"loss must be a scalar, got shape {tuple(loss.shape)}")
    _validate.real_tensor("loss", loss)
    if not loss.requires_grad or loss.grad_fn is None:
        got = "a leaf" if loss.requires_grad else "a detached tensor"
        raise ValueError(
            f"loss must carry a graph (be computed from the parameters with gradients enabled), got {got}"
        )
    if loss.is_meta:
        raise ValueError("loss must hold a value, got a tensor on the meta device")
    if finite and not math.isfinite(value := loss.item()):
        raise ValueError(f"loss must be finite, got {value}")


def refuse_reentrant_checkpoints(names: Iterable[str]) -> None:
    """Raises ValueError if the ``names`` of a graph's nodes show a reentrant checkpoint: its inside is not in the graph."""
    if "CheckpointFunctionBackward" in names:
        raise ValueError(
            "model must not use torch.utils.checkpoint with use_reentrant=True, which hides the parameters inside it from "
            "autograd.grad; pass use_reentrant=False"
        )


def warn_of_module_hooks(names: Iterable[str]) -> None:
    """Warns if the ``names`` of a graph's nodes show a full backward hook of a module, which a graph holds for good."""
    if "BackwardHookFunctionBackward" in names:
        warn_user(
            "a full backward hook of a module stands in the graph of loss: it runs in every reading too, and where it changes "
            "gradients, what is measured is no curvature of the loss. estimate_trace, which runs the model itself, leaves such "
            "hooks out; else remove the hook before the forward pass",
            UserWarning,
        )


@contextmanager
def without_hooks(parameters: Sequence[NumberedParameter]) -> Iterator[None]:
    """Switches the gradient hooks of leaf parameters off: a reading is not the user's backward pass."""
    hooked = [(p.tensor, p.tensor._backward_hooks) for p in parameters if p.tensor._backward_hooks]
    try:
        for tensor, _ in hooked:
            tensor._backward_hooks = None
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks

"""Turns autograd's failures into errors that say what to do; the original error is chained."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class NotTwiceDifferentiableError(RuntimeError):
    """Raised where autograd cannot differentiate an operation in the graph of the loss twice.

    Compiled models, fused attention kernels and custom functions marked ``once_differentiable`` have no second derivative. The
    message names the failure and says how to compute the loss instead. It is a ``RuntimeError``, as autograd's own failures
    are.
    """


class NotApplicable(Exception):
    """Raised where a fast way to Hessian-vector products does not serve a graph, and a more general one does."""


_CHANGED = (
    "the graph of loss is out of date, because a tensor that it needs was modified in place after the forward pass: measure "
    "curvature before the parameters change"
)
_FREED = "the graph of loss has been freed: measure curvature before loss.backward() (or keep the graph with retain_graph=True)"
_ADVICE = (
    "Curvature needs second derivatives, which compiled models, fused attention kernels and once-differentiable custom "
    "functions lack. Compute the loss with the uncompiled model, and attention under "
    "torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH)"
)
FUNCTION_ADVICE = (
    "Let its backward compute with differentiable torch operations from its inputs and outputs, saved by "
    "ctx.save_for_backward (a constant passed as an input is fine); or measure without second derivatives of it, by "
    "estimate_trace with method='finite_difference'"
)


def without_advice(error: NotTwiceDifferentiableError) -> str:
    """Returns the error's message as far as it says what failed and why."""
    message = str(error)
    for advice in (_ADVICE, FUNCTION_ADVICE):
        message = message.partition(f". {advice}")[0]
    return message


@contextmanager
def explain_differentiation_errors(what: str) -> Iterator[None]:
    """Wraps a call of ``torch.autograd.grad`` that computes ``what``.

    Raises:
        ValueError: the graph was already freed, or a tensor in it changed since.
        NotTwiceDifferentiableError: autograd raised any other RuntimeError (out of memory stays what it is).
    """
    try:
        yield
    except RuntimeError as error:
        message = str(error)
        if "a second time" in message:
            raise ValueError(_FREED) from error
        if "modified by an inplace operation" in message:
            raise ValueError(_CHANGED) from error
        if "out of memory" in message or "alloc" in message:
            raise
        raise NotTwiceDifferentiableError(f"{what} failed: {message}. {_ADVICE}.") from error


def refuse_reentrant_checkpoints(names: Iterable[str]) -> None:
    """Raises ValueError if the ``names`` of a graph's nodes show a reentrant checkpoint: its inside is not in the graph."""
    if "CheckpointFunctionBackward" in names:
        raise ValueError(
            "model must not use torch.utils.checkpoint with use_reentrant=True, which hides the parameters inside it from "
            "autograd.grad; pass use_reentrant=False"
        )

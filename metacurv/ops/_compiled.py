"""The kernels of the compiled module, which override their torch twins.

Autograd does not see what a kernel writes, so the tensors it wrote to are reported, as an in-place torch op does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from metacurv.ops._reference import SHAPES, OpSet

_F = TypeVar("_F", bound=Callable[..., Any])

# A layer whose weight has more elements than this falls out of a core's cache, and is left to torch's matrix product.
_MOST_WEIGHT = 1 << 16
# exp is not vectorised in the compiled chain.
_MOST_LOGITS = 1 << 16


def _kernel(twin: _F, serves: Callable[..., bool] | None = None) -> _F:
    """Returns a method that calls the kernel called as its twin is, or the twin where ``serves`` says that no kernel is.

    On the CPU a probe given as a number goes to the overload ``number``, as making a tensor of it would take longer than small
    work does; elsewhere the tensor is made here.
    """
    overloads = getattr(torch.ops.metacurv, twin.__name__)
    default, number = overloads.default, getattr(overloads, "number", None)
    arguments = default._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info and a.alias_info.is_write]
    at = next((i for i, a in enumerate(arguments) if a.name == "probe"), 0)
    takes_tensor = str(arguments[at].type) == "Tensor" and arguments[at].name == "probe"
    for name in overloads.overloads():
        label = twin.__name__ if name == "default" else f"{twin.__name__}.{name}"
        returns = getattr(overloads, name)._schema.returns
        shape = SHAPES[label] if returns else _returns_nothing
        torch.library.register_fake(f"metacurv::{label}", shape)

    @wraps(twin)
    def call(self: OpSet, *values: Any) -> Any:
        if serves is not None and not serves(*values):
            return twin(self, *values)
        overload = default
        if takes_tensor and not isinstance(values[at], Tensor):
            device = _device_of(values[0])
            if number is not None and device is not None and device.type == "cpu":
                overload = number
            else:
                probe = torch.full((), values[at], device=device)
                values = (*values[:at], probe, *values[at + 1 :])
        result = overload(*values)
        for i in written:
            increment_version(values[i])
        return result

    return call  # type: ignore[return-value]


def _device_of(first: Tensor | Sequence[Tensor]) -> torch.device | None:
    """Returns the device of an op's first argument, None of an empty list."""
    if isinstance(first, Tensor):
        return first.device
    return first[0].device if first else None


def _returns_nothing(*values: Any) -> None:
    """Stands for an op that only writes."""


def _is_small_chain(log_p: Tensor, *rest: Any) -> bool:
    weights: Sequence[Tensor] = rest[-3]
    return (
        log_p.dtype is torch.float32
        and log_p.is_cpu
        and log_p.numel() <= _MOST_LOGITS
        and all(weight.numel() <= _MOST_WEIGHT for weight in weights)
    )


class CompiledOps(OpSet):
    """The kernels; where one does not serve a dtype or a size, its twin does, made of the other kernels."""

    rademacher_ = _kernel(OpSet.rademacher_)
    signed_sum = _kernel(OpSet.signed_sum)
    hutchinson_accumulate_ = _kernel(OpSet.hutchinson_accumulate_)
    reciprocal_lr_ = _kernel(OpSet.reciprocal_lr_)
    chain_draws = _kernel(OpSet.chain_draws, serves=_is_small_chain)
    chain_columns = _kernel(OpSet.chain_columns, serves=_is_small_chain)

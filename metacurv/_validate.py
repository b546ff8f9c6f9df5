"""Argument checks: each error names the argument, what it needs and what it got."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import Dataset

BACKENDS = ("auto", "native", "reference")
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def describe(value: Any) -> str:
    """Describes an argument in a few words, for an error message."""
    if isinstance(value, Tensor):
        return "a Tensor"
    text = repr(value)
    first = text.splitlines()[0] if text else ""
    shown = first if first == text and len(text) <= 200 else f"{first[:200]}..."
    return f"{type(value).__name__} {shown}"


def integer(name: str, value: Any, *, low: int, high: int | None = None) -> int:
    """Returns ``value`` as an int with ``low <= value`` (and ``value < high``), else raises TypeError or ValueError."""
    is_integer = isinstance(value, Integral) and not isinstance(value, bool)
    if is_integer and low <= value and (high is None or value < high):
        return int(value)
    bounds = f">= {low}" if high is None else f"in [{low}, {high})"
    if is_integer:
        raise ValueError(f"{name} must be {bounds}, got {int(value)}")
    raise TypeError(f"{name} must be an integer {bounds}, got {describe(value)}")


def real(
    name: str,
    value: Any,
    *,
    low: float = -math.inf,
    above: float = -math.inf,
    below: float = math.inf,
    high: float = math.inf,
) -> float:
    """Returns ``value`` as a float that keeps all four bounds, else raises TypeError or ValueError.

    The bounds are ``low <= value``, ``above < value``, ``value < below`` and ``value <= high``. nan and infinity are refused.
    """
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    result = float(value) if is_number else math.nan
    if math.isfinite(result) and low <= result < below and above < result <= high:
        return result
    bounds = ((">=", low), (">", above), ("<", below), ("<=", high))
    limits = [f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound)]
    needs = " ".join(["a finite number", " and ".join(limits)]).rstrip()
    if is_number:
        raise ValueError(f"{name} must be {needs}, got {result}")
    raise TypeError(f"{name} must be {needs}, got {describe(value)}")


def boolean(name: str, value: Any) -> bool:
    """Returns ``value`` where it is True or False, else raises TypeError."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {describe(value)}")
    return value


Choice = TypeVar("Choice", bound=str)


def one_of(name: str, value: Choice, choices: Sequence[str]) -> Choice:
    """Returns ``value`` where it is one of ``choices``, else raises ValueError."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {describe(value)}")
    return value


def seed(value: Any) -> int:
    """Returns a checked seed: an integer in [0, 2^64), the 64 bits of the Philox key."""
    return integer("seed", value, low=0, high=1 << 64)


def backend(value: Any) -> str:
    """Returns a checked backend, one of BACKENDS."""
    if value not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {describe(value)}")
    return str(value)


def loss_function(loss_fn: Any) -> None:
    """Checks that ``loss_fn`` is callable, and is not a class that somebody forgot to make an instance of."""
    if loss_fn is None:
        raise TypeError(
            "loss_fn must be given: a function of (output, targets), such as torch.nn.functional.cross_entropy; got none"
        )
    if not callable(loss_fn):
        raise TypeError(f"loss_fn must be callable, got {describe(loss_fn)}")
    if isinstance(loss_fn, type):
        raise TypeError(
            f"loss_fn must take (output, targets), got the class {loss_fn.__name__}; did you mean {loss_fn.__name__}()?"
        )


def callback(name: str, value: Any) -> Callable[[Any], None] | None:
    """Returns a checked callback: a function or None."""
    if value is not None and not callable(value):
        raise TypeError(f"{name} must be callable, got {describe(value)}")
    result: Callable[[Any], None] | None = value
    return result


def no_data_set(name: str, value: Any, needed: str) -> None:
    """Refuses a data set of single examples, since only a loader makes batches of them."""
    if isinstance(value, Dataset) and not isinstance(value, Iterable) and not callable(value):
        raise TypeError(
            f"{name} must be {needed}, got a data set ({type(value).__name__}); DataLoader(dataset, batch_size=...) makes "
            "batches of it"
        )


def is_real_tensor(tensor: Any) -> bool:
    """Tells whether ``real_tensor`` would accept ``tensor``, at less cost: the caller needs no name for it."""
    return isinstance(tensor, Tensor) and tensor.layout is torch.strided and tensor.dtype in DTYPES


def real_tensor(name: str, tensor: Any) -> Tensor:
    """Checks that ``tensor`` is dense and has one of DTYPES."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a Tensor, got {describe(tensor)}")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense (strided) tensor, got layout {tensor.layout}")
    if tensor.dtype not in DTYPES:
        raise TypeError(f"{name} must be float32, float64, float16 or bfloat16, got {tensor.dtype}")
    return tensor


def same_device(name: str, tensors: Sequence[Tensor]) -> None:
    """Checks that all tensors are on the device of the first."""
    devices = [tensor.device for tensor in tensors]
    for index, device in enumerate(devices):
        if device != devices[0]:
            raise ValueError(
                f"{name} must be on one device, got {devices[0]} and (at {index}) {device}"
            )

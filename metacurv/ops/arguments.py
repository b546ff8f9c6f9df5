"""Checks of what the ops are given: lists of tensors, and which random signs belong to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv import _validate


def check_list(
    name: str,
    tensors: Sequence[Tensor],
    numbers: Sequence[int] | None,
    offsets: Sequence[int] | None,
) -> tuple[list[Tensor], list[int], list[int]]:
    """Returns detached tensors with their numbers and offsets."""
    if isinstance(tensors, Tensor) or not isinstance(tensors, Sequence):
        raise TypeError(
            f"{name} must be a list or tuple of tensors, got {_validate.describe(tensors)}"
        )
    checked = list(tensors)
    for t, tensor in enumerate(checked):
        if not _validate.is_real_tensor(tensor):
            _validate.real_tensor(f"{name}[{t}]", tensor)
        if tensor.requires_grad:
            checked[t] = tensor.detach()
    if len(checked) > 1:
        _validate.same_device(name, checked)
    n = len(checked)
    return (
        checked,
        list(range(n)) if numbers is None else _check_integers("numbers", numbers, n, 1 << 32),
        [0] * n if offsets is None else _check_integers("offsets", offsets, n, 1 << 62),
    )


def _check_integers(name: str, values: Sequence[int], n: int, high: int) -> list[int]:
    if not hasattr(values, "__len__") or isinstance(values, str):
        raise TypeError(f"{name} must be a list or tuple of ints, got {_validate.describe(values)}")
    if len(values) != n:
        raise ValueError(f"{name} must have one entry per tensor, got {len(values)} for {n}")
    return [
        _validate.integer(f"{name}[{t}]", value, low=0, high=high) for t, value in enumerate(values)
    ]


def probe_argument(probe: int | Tensor, device: torch.device) -> int | Tensor:
    """Returns the probe as the ops take it: a number, or one int64 element on ``device``."""
    if not isinstance(probe, Tensor):
        return _validate.integer("probe", probe, low=0, high=1 << 32)
    if probe.dtype != torch.int64 or probe.numel() != 1 or probe.device != device:
        raise ValueError(
            f"probe must be an int or one int64 element on {device}, got {probe.dtype} of shape "
            f"{tuple(probe.shape)} on {probe.device}"
        )
    return probe


def device_of(tensors: Sequence[Tensor], probe: int | Tensor) -> torch.device:
    """Returns the device to run on; an empty list runs where the probe is."""
    if tensors:
        return tensors[0].device
    return probe.device if isinstance(probe, Tensor) else torch.device("cpu")


def _is_negated(tensor: Tensor) -> bool:
    """Tells whether a tensor's values are the negatives of those in its memory. torch.compile cannot trace the question."""
    return not torch.compiler.is_compiling() and tensor.is_neg()


def elements_overlap(tensor: Tensor) -> bool:
    """Tells whether elements may share memory (expanded, unfolded tensors): some stride is shorter than the span within."""
    if tensor.is_contiguous():
        return False
    reach = 0
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1:
            if stride <= reach:
                return tensor.numel() > 0
            reach += stride * (size - 1)
    return False


def check_written(name: str, t: int, tensor: Tensor) -> None:
    """Raises ValueError where elements of a tensor that an op fills share memory, or stand for negatives."""
    negated = _is_negated(tensor)
    if negated or elements_overlap(tensor):
        kind = (
            "a lazily negated view"
            if negated
            else "overlapping elements of an expanded or unfolded view"
        )
        raise ValueError(
            f"{name}[{t}] must own each of its elements, got {kind} (shape {tuple(tensor.shape)}, "
            f"strides {tensor.stride()})"
        )

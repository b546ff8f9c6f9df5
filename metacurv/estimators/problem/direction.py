"""Checks a user's direction in parameter space, and splits it into one tensor for each parameter that it moves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.estimators.problem.parameters import NumberedParameter

Direction = Sequence[Tensor] | Mapping[str, Tensor] | Tensor


def read_direction(
    direction: Direction, parameters: Sequence[NumberedParameter]
) -> dict[str, Tensor]:
    """Returns the parts of ``direction`` that are not 0, by parameter name, in the parameters' shapes and dtypes.

    Raises:
        TypeError: ``direction`` is not a tensor, list, tuple or mapping of dense real tensors.
        ValueError: an unknown name, a wrong number of tensors, shape or device, an entry that is not finite, or all zeros.
    """
    moving: dict[str, Tensor] = {}
    for parameter, label, part in _labelled(direction, parameters):
        value = _checked(label, part, parameter)
        if value.numel() and float(value.abs().max()) > 0:
            moving[parameter.name] = value
    if not moving:
        raise ValueError("direction must not be all zeros")
    return moving


def _labelled(
    direction: Direction, parameters: Sequence[NumberedParameter]
) -> list[tuple[NumberedParameter, str, Any]]:
    """Returns parameters, each with its part's name in errors and the part."""
    if isinstance(direction, Tensor):
        sizes = [p.tensor.numel() for p in parameters]
        if direction.dim() != 1 or direction.numel() != sum(sizes):
            raise ValueError(
                f"direction as one tensor must be flat, with one entry for each of the model's {sum(sizes)} parameters that "
                f"require a gradient, got shape {tuple(direction.shape)}"
            )
        _validate.real_tensor("direction", direction)
        pieces = zip(parameters, torch.split(direction, sizes), strict=True)
        return [(p, "direction", piece.view(p.tensor.shape)) for p, piece in pieces]
    if isinstance(direction, Mapping):
        by_name = {p.name: p for p in parameters}
        for name in direction:
            if name not in by_name:
                raise ValueError(
                    f"direction must name parameters of the model that require a gradient, got {name!r}; they are "
                    f"{', '.join(map(repr, by_name))}"
                )
        return [(by_name[name], f"direction[{name!r}]", part) for name, part in direction.items()]
    if not isinstance(direction, (list, tuple)):
        raise TypeError(
            f"direction must be a list or tuple of tensors, a mapping from parameter names to tensors, or one flat tensor, got "
            f"{_validate.describe(direction)}"
        )
    if len(direction) != len(parameters):
        raise ValueError(
            f"direction must have a tensor for each of the model's {len(parameters)} parameters that require a gradient, got "
            f"{len(direction)}"
        )
    pairs = enumerate(zip(parameters, direction, strict=True))
    return [(p, f"direction[{index}]", part) for index, (p, part) in pairs]


def _checked(label: str, part: Any, parameter: NumberedParameter) -> Tensor:
    _validate.real_tensor(label, part)
    like = parameter.tensor
    if part.shape != like.shape:
        raise ValueError(
            f"{label} must have the shape {tuple(like.shape)} of parameter {parameter.name!r}, got {tuple(part.shape)}"
        )
    if part.device != like.device:
        raise ValueError(
            f"{label} must be on device {like.device} of parameter {parameter.name!r}, got {part.device}"
        )
    value: Tensor = part.detach().to(like.dtype)
    if not bool(torch.isfinite(value).all()):
        raise ValueError(f"{label} must be finite in {like.dtype}, got nan or infinity")
    return value

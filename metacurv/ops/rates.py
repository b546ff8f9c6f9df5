"""The learning-rate update on the device: ``reciprocal_lr_``."""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.ops.backend import implementation


def reciprocal_lr_(scale: Tensor, trace: Tensor, *, alpha: float, backend: str = "auto") -> None:
    """Applies the reciprocal rule, scale <- 1 / (1 + alpha max(trace, 0)), on the device, without a host sync.

    A trace that is not finite leaves ``scale`` as it was (1 where it held nothing usable). The result is always finite and in
    [2^-40, 1], so that a learning rate times it stays positive.

    Args:
        scale: one float32 or float64 element, updated; no unit.
        trace: one float32 or float64 element on the same device.
        alpha: finite, >= 0, in units of 1 / trace.
        backend: "auto", "native" or "reference".

    Raises:
        TypeError: ``scale`` or ``trace`` is no tensor, or ``alpha`` no number.
        ValueError: an argument is of the wrong dtype, size, device or range.
        RuntimeError: ``backend="native"`` where it was not built.

    Examples:
        >>> scale = torch.ones(())
        >>> reciprocal_lr_(scale, torch.tensor(300.0), alpha=0.01)
        >>> scale.item()
        0.25
    """
    for name, tensor in (("scale", scale), ("trace", trace)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {_validate.describe(tensor)}")
        if (
            tensor.layout != torch.strided
            or tensor.numel() != 1
            or tensor.dtype not in (torch.float32, torch.float64)
        ):
            raise ValueError(
                f"{name} must be one float32 or float64 element, got {tensor.dtype} of shape {tuple(tensor.shape)}"
            )
    _validate.same_device("scale and trace", [scale, trace])
    checked_alpha = _validate.real("alpha", alpha, low=0)
    implementation(backend, scale.device).reciprocal_lr_(scale, trace, checked_alpha)

"""The choice between kernels and torch twins."""

from __future__ import annotations

import torch

from metacurv import _validate
from metacurv.ops import _native
from metacurv.ops._reference import OpSet

TWINS = OpSet()
KERNELS: OpSet | None = None
if _native.native_available():
    from metacurv.ops._compiled import CompiledOps

    KERNELS = CompiledOps()


def implementation(backend: str, device: torch.device) -> OpSet:
    """Returns the ops as ``backend`` has them on ``device``: unchecked, with positional arguments.

    Args:
        backend: "auto", "native" or "reference".
        device: the tensors' device.

    Returns:
        The torch twins, or the kernels that override them.

    Raises:
        ValueError: ``backend`` is unknown.
        RuntimeError: ``backend="native"`` and no kernel was compiled for ``device``.
    """
    if backend == "auto" and device.type == "cpu" and KERNELS is not None:
        return KERNELS  # the usual case comes first, as some callers need it fast
    _validate.backend(backend)
    if backend == "reference":
        return TWINS
    if KERNELS is not None and (
        device.type in ("cpu", "meta") or (device.type == "cuda" and _native.cuda_compiled())
    ):
        return KERNELS
    if backend == "native":
        raise RuntimeError(
            f"backend='native' needs kernels compiled for device {device}, which this installation lacks: "
            f"{_native.build_info()}"
        )
    if KERNELS is None:
        _native.warn_fallback_once()
    return TWINS


def as_int64(seed: int) -> int:
    """Returns the same 64 bits as an int64, which is what an op schema can carry.

    Args:
        seed: int in [0, 2^64).

    Returns:
        The int in [-2^63, 2^63) with the same bits.

    Raises:
        TypeError: ``seed`` is no integer.
        ValueError: ``seed`` is out of range.
    """
    checked = _validate.seed(seed)
    return checked - (1 << 64) if checked >= 1 << 63 else checked

"""Random signs and what is summed with them: ``rademacher_``, ``signed_sum``, ``hutchinson_accumulate_``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.ops.arguments import check_list, check_written, device_of, probe_argument
from metacurv.ops.backend import as_int64, implementation


def rademacher_(
    tensors: Sequence[Tensor],
    *,
    seed: int,
    probe: int | Tensor,
    numbers: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
    backend: str = "auto",
) -> None:
    """Fills every tensor with its part of Rademacher probe ``probe``: entries +1 and -1 with equal probability.

    Args:
        tensors: T dense float32, float64, float16 or bfloat16 tensors of any shape and stride, on one device.
        seed: int in [0, 2^64), the seed of all probes.
        probe: number of the probe: int in [0, 2^32), or a 0-dim int64 tensor on the tensors' device.
        numbers: T parameter numbers, ints in [0, 2^32); by default 0, 1, 2, ...
        offsets: T indices of first elements in unsharded parameters, ints >= 0; by default 0.
        backend: "auto", "native" or "reference".

    Raises:
        TypeError: an argument is of the wrong type, dtype or layout; nothing is written.
        ValueError: an argument is of the wrong length, range or device; nothing is written.
        RuntimeError: ``backend="native"`` where it was not built.

    Examples:
        >>> x = torch.empty(4)
        >>> rademacher_([x], seed=0, probe=0)
        >>> sorted({abs(value) for value in x.tolist()})
        [1.0]
    """
    checked, number_list, offset_list = check_list("tensors", tensors, numbers, offsets)
    for t, tensor in enumerate(checked):
        check_written("tensors", t, tensor)
    device = device_of(checked, probe)
    run = implementation(backend, device)
    number = probe_argument(probe, device)
    run.rademacher_(checked, as_int64(seed), number, number_list, offset_list)


def signed_sum(
    tensors: Sequence[Tensor],
    *,
    seed: int,
    probe: int | Tensor,
    numbers: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
    backend: str = "auto",
) -> Tensor:
    """Computes the inner product v . x of each tensor x with its part v of Rademacher probe ``probe``; v is never stored.

    Args:
        tensors: T dense float32, float64, float16 or bfloat16 tensors of any shape and stride, on one device.
        seed: int in [0, 2^64), the seed of all probes.
        probe: number of the probe: int in [0, 2^32), or a 0-dim int64 tensor on the tensors' device.
        numbers: T parameter numbers, ints in [0, 2^32); by default 0, 1, 2, ...
        offsets: T indices of first elements in unsharded parameters, ints >= 0; by default 0.
        backend: "auto", "native" or "reference".

    Returns:
        float64 [T] on the tensors' device. On CPU native and reference agree bit for bit.

    Raises:
        TypeError: an argument is of the wrong type, dtype or layout.
        ValueError: an argument is of the wrong length, range or device.
        RuntimeError: ``backend="native"`` where it was not built.

    Examples:
        >>> x = torch.ones(1000)
        >>> v = torch.empty(1000)
        >>> rademacher_([v], seed=0, probe=7)
        >>> bool(signed_sum([x], seed=0, probe=7)[0] == v.sum())
        True
    """
    checked, number_list, offset_list = check_list("tensors", tensors, numbers, offsets)
    device = device_of(checked, probe)
    run = implementation(backend, device)
    number = probe_argument(probe, device)
    return run.signed_sum(checked, as_int64(seed), number, number_list, offset_list)


def hutchinson_accumulate_(
    mean: Tensor,
    m2: Tensor,
    count: Tensor,
    products: Sequence[Tensor],
    *,
    seed: int,
    probe: int | Tensor,
    numbers: Sequence[int] | None = None,
    offsets: Sequence[int] | None = None,
    backend: str = "auto",
) -> None:
    """Folds one Hutchinson sample v . (H v) into running statistics, per tensor and in total, on the device.

    With s the sample and n the new count, Welford's update (1962) is  d = s - mean;  mean += d / n;  m2 += d (s - mean).
    The standard error of the mean is sqrt(m2 / (n - 1) / n). There is no host sync.

    Args:
        mean: float64 [T + 1] contiguous, updated; entry t for tensor t, the last for the sum over all tensors.
        m2: float64 [T + 1] contiguous, updated: the sums of squared deviations.
        count: 0-dim int64, the number of samples so far, updated.
        products: T tensors, H v for the same probe.
        seed: int in [0, 2^64), the seed of all probes.
        probe: number of the probe: int in [0, 2^32), or a 0-dim int64 tensor on the tensors' device.
        numbers: T parameter numbers, ints in [0, 2^32); by default 0, 1, 2, ...
        offsets: T indices of first elements in unsharded parameters, ints >= 0; by default 0.
        backend: "auto", "native" or "reference".

    Raises:
        TypeError: an argument is of the wrong type, or a product of the wrong dtype or layout.
        ValueError: an argument is of the wrong length, range or device, or a statistic of the wrong shape, dtype or layout.
        RuntimeError: ``backend="native"`` where it was not built.

    Examples:
        >>> mean, m2, count = torch.zeros(2).double(), torch.zeros(2).double(), torch.zeros((), dtype=torch.int64)
        >>> v = torch.empty(3)
        >>> for probe in range(2):  # H = 2 I, so H v = 2 v and every sample is 2 * 3
        ...     rademacher_([v], seed=0, probe=probe)
        ...     hutchinson_accumulate_(mean, m2, count, [2 * v], seed=0, probe=probe)
        >>> mean.tolist(), m2.tolist(), count.item()
        ([6.0, 6.0], [0.0, 0.0], 2)
    """
    checked, number_list, offset_list = check_list("products", products, numbers, offsets)
    device = device_of([*checked, mean], probe)
    for name, tensor, dtype, shape in (
        ("mean", mean, torch.float64, (len(checked) + 1,)),
        ("m2", m2, torch.float64, (len(checked) + 1,)),
        ("count", count, torch.int64, ()),
    ):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {_validate.describe(tensor)}")
        if (
            tensor.dtype != dtype
            or tuple(tensor.shape) != shape
            or not tensor.is_contiguous()
            or tensor.device != device
        ):
            raise ValueError(
                f"{name} must be contiguous, {dtype} of shape {shape} on {device}, got {tensor.dtype} of shape "
                f"{tuple(tensor.shape)} on {tensor.device}"
            )
    number = probe_argument(probe, device)
    key = as_int64(seed)
    implementation(backend, device).hutchinson_accumulate_(
        mean, m2, count, checked, key, number, number_list, offset_list
    )

"""The ops of metacurv, each as a compiled kernel and as a twin in plain torch, behind one checked function.

Random signs follow one contract (``csrc/philox.h``): element ``i`` of parameter ``number`` in probe ``probe`` under ``seed`` is
+1 or -1 by one bit of a Philox4x32-10 block, whatever the device, dtype, thread count or sharding. These arguments mean the
same in every op:

- ``seed``: int in [0, 2^64).
- ``probe``: int in [0, 2^32), or a 0-dim int64 tensor on the tensors' device, read modulo 2^32 when the op runs, so that a
  captured CUDA graph can advance it.
- ``numbers``: the parameter number of each tensor, ints in [0, 2^32); by default 0, 1, 2, ...
- ``offsets``: the index of each tensor's first element in its unsharded parameter, ints >= 0; by default 0.
- ``backend``: "native" runs the compiled op and raises an error where there is none; "reference" runs the torch twin; "auto"
  runs the compiled op where it was built for the tensors' device, else the twin.

The generator is that of Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.

The CUDA kernels are compiled and checked without a GPU; no GPU has run them yet.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from metacurv import _kernels, _native, _reference, _validate

__all__ = [
    "hutchinson_accumulate_",
    "rademacher_",
    "reciprocal_lr_",
    "row_products",
    "signed_sum",
    "softmax_factor",
]


def implementation(backend: str, device: torch.device) -> ModuleType:
    """Returns the module that serves ``backend`` on ``device``: ``_kernels`` or ``_reference``, the same functions unchecked.

    Args:
        backend: "auto", "native" or "reference".
        device: the tensors' device.

    Returns:
        The module with the positional functions behind this module's own.

    Raises:
        ValueError: ``backend`` is unknown.
        RuntimeError: ``backend="native"`` and no kernel was compiled for ``device``.
    """
    if backend == "auto" and device.type == "cpu" and _native.native_available():
        return _kernels  # the usual case comes first, as some callers need it fast
    _validate.backend(backend)
    if backend == "reference":
        return _reference
    if device.type in ("cpu", "meta"):
        available = _native.native_available()
    else:
        available = device.type == "cuda" and _native.cuda_compiled()
    if available:
        return _kernels
    if backend == "native":
        raise RuntimeError(
            f"backend='native' needs kernels compiled for device {device}, which this installation lacks: "
            f"{_native.build_info()}"
        )
    if not _native.native_available():
        _native.warn_fallback_once()
    return _reference


def _check_list(
    name: str,
    tensors: Sequence[Tensor],
    numbers: Sequence[int] | None,
    offsets: Sequence[int] | None,
) -> tuple[list[Tensor], list[int], list[int]]:
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


def _probe_tensor(probe: int | Tensor, device: torch.device) -> Tensor:
    if not isinstance(probe, Tensor):
        return torch.full((), _validate.integer("probe", probe, low=0, high=1 << 32), device=device)
    if probe.dtype != torch.int64 or probe.numel() != 1 or probe.device != device:
        raise ValueError(
            f"probe must be an int or one int64 element on {device}, got {probe.dtype} of shape "
            f"{tuple(probe.shape)} on {probe.device}"
        )
    return probe


def _probe_argument(
    probe: int | Tensor, run: ModuleType, tensors: Sequence[Tensor], device: torch.device
) -> int | Tensor:
    """Returns the probe in the form that ``rademacher_`` and ``signed_sum`` of ``run`` take fastest."""
    if run is _kernels and tensors and device.type == "cpu" and not isinstance(probe, Tensor):
        return _validate.integer("probe", probe, low=0, high=1 << 32)
    return _probe_tensor(probe, device)


def _device_of(tensors: Sequence[Tensor], probe: int | Tensor) -> torch.device:
    """Returns the device to run on; an empty list runs where the probe is."""
    if tensors:
        return tensors[0].device
    return probe.device if isinstance(probe, Tensor) else torch.device("cpu")


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


def _is_negated(tensor: Tensor) -> bool:
    """Tells whether a tensor's values are the negatives of those in its memory. torch.compile cannot trace the question."""
    return not torch.compiler.is_compiling() and tensor.is_neg()


def _elements_overlap(tensor: Tensor) -> bool:
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


def _check_written(name: str, t: int, tensor: Tensor) -> None:
    negated = _is_negated(tensor)
    if negated or _elements_overlap(tensor):
        kind = (
            "a lazily negated view"
            if negated
            else "overlapping elements of an expanded or unfolded view"
        )
        raise ValueError(
            f"{name}[{t}] must own each of its elements, got {kind} (shape {tuple(tensor.shape)}, "
            f"strides {tensor.stride()})"
        )


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
    checked, number_list, offset_list = _check_list("tensors", tensors, numbers, offsets)
    for t, tensor in enumerate(checked):
        _check_written("tensors", t, tensor)
    device = _device_of(checked, probe)
    run = implementation(backend, device)
    number = _probe_argument(probe, run, checked, device)
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
    checked, number_list, offset_list = _check_list("tensors", tensors, numbers, offsets)
    device = _device_of(checked, probe)
    run = implementation(backend, device)
    number = _probe_argument(probe, run, checked, device)
    sums: Tensor = run.signed_sum(checked, as_int64(seed), number, number_list, offset_list)
    return sums


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
    checked, number_list, offset_list = _check_list("products", products, numbers, offsets)
    device = _device_of([*checked, mean], probe)
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
    probe_tensor = _probe_tensor(probe, device)
    key = as_int64(seed)
    implementation(backend, device).hutchinson_accumulate_(
        mean, m2, count, checked, key, probe_tensor, number_list, offset_list
    )


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


def _floats_only(
    backend: str, run: ModuleType, dtype: torch.dtype, device: torch.device
) -> ModuleType:
    """Returns ``run``, or the twin for dtypes that ``softmax_factor`` and ``row_products`` are not compiled for."""
    if dtype in (torch.float32, torch.float64):
        return run
    if backend == "native":
        raise RuntimeError(
            f"backend='native' serves float32 and float64 here, got {dtype} on {device}"
        )
    return _reference


def softmax_factor(
    sqrt_p: Tensor,
    root: Tensor,
    *,
    seed: int,
    probe: int | Tensor,
    number: int,
    n_probes: int,
    backend: str = "auto",
) -> Tensor:
    """Computes random products S e with a factor S of the Hessian of softmax cross-entropy in the logits.

    For one example with probabilities p and weight s that Hessian is s (diag(p) - p p') = S S' with
    S = sqrt(s) (diag(sqrt p) - p sqrt(p)'), since sqrt(p)' sqrt(p) = 1; so E[(S e)(S e)'] is the Hessian for a probe e.
    With t = sqrt(p) e entry by entry, t^2 = p, and  S e = sqrt(s) (t - t^2 sum_c t).

    Row sums are taken in float64, the rest in the dtype of ``sqrt_p``. The compiled op serves float32 and float64, other
    dtypes go to the torch twin. No temporary has the size of the result.

    Args:
        sqrt_p: [M, C], square roots of the probabilities of C classes.
        root: [M], square root of each example's weight, of the same dtype.
        seed: int in [0, 2^64), the seed of all probes.
        probe: number of the first probe, int or 0-dim int64 tensor; the others follow it, modulo 2^32.
        number: parameter number, int in [0, 2^32), of the [M, C] signs e.
        n_probes: K, >= 0.
        backend: "auto", "native" or "reference".

    Returns:
        [K, M, C] of the dtype of ``sqrt_p``, contiguous. On CPU native and reference agree bit for bit.

    Raises:
        TypeError: an argument is of the wrong type, dtype or layout.
        ValueError: an argument is of the wrong shape, range or device.
        RuntimeError: ``backend="native"`` cannot serve the dtype or device.

    References:
        Dangel, Harmeling, Hennig 2020, "Modular block-diagonal curvature approximations", section 3 (the symmetric factor).

    Examples:
        >>> p = torch.tensor([[0.25, 0.75]], dtype=torch.float64)
        >>> u = softmax_factor(p.sqrt(), torch.ones(1, dtype=torch.float64), seed=0, probe=0, number=0, n_probes=1)
        >>> bool(u.sum().abs() < 1e-15)  # the Hessian does not see a shift of all logits
        True
    """
    _validate.real_tensor("sqrt_p", sqrt_p)
    _validate.real_tensor("root", root)
    if sqrt_p.dim() != 2:
        raise ValueError(f"sqrt_p must be a matrix [M, C], got shape {tuple(sqrt_p.shape)}")
    if (
        tuple(root.shape) != (sqrt_p.shape[0],)
        or root.dtype != sqrt_p.dtype
        or root.device != sqrt_p.device
    ):
        raise ValueError(
            f"root must be {sqrt_p.dtype} of shape ({sqrt_p.shape[0]},) on {sqrt_p.device}, got {root.dtype} of shape "
            f"{tuple(root.shape)} on {root.device}"
        )
    checked_number = _validate.integer("number", number, low=0, high=1 << 32)
    checked_probes = _validate.integer("n_probes", n_probes, low=0)
    run = implementation(backend, sqrt_p.device)
    run = _floats_only(backend, run, sqrt_p.dtype, sqrt_p.device)
    first = _probe_argument(probe, run, [sqrt_p], sqrt_p.device)
    u: Tensor = run.softmax_factor(
        sqrt_p.detach(), root.detach(), as_int64(seed), first, checked_number, checked_probes
    )
    return u


def row_products(a: Tensor, u: Tensor, w: Tensor, backend: str = "auto") -> Tensor:
    """Computes sum_n ||a_n||^2 (u_rn . w_rn) and sum_n u_rn . w_rn for every draw r.

    With a_n the input of a linear layer for example n, and u_rn, w_rn cotangents of its output, these are the shares of the
    layer's weight and bias in ``sum_n <u_rn a_n', w_rn a_n'>``: their gradients are outer products, and never made.

    Each input is read once, and ``w`` not at all where it is ``u``. Products and sums are in float64. The compiled op serves
    float32 and float64, other dtypes go to the torch twin.

    Args:
        a: [N, I].
        u: [R, N, O], of the same dtype and device.
        w: [R, N, O], of the same dtype and device; may be ``u``.
        backend: "auto", "native" or "reference".

    Returns:
        float64 [R, 2]: the sum with norms, the sum without. The order of summation depends on the shapes only, and is not
            the twin's.

    Raises:
        TypeError: an argument is of the wrong type, dtype or layout.
        ValueError: an argument is of the wrong shape or device.
        RuntimeError: ``backend="native"`` cannot serve the dtype or device.

    References:
        Goodfellow 2015, "Efficient per-example gradient computations".

    Examples:
        >>> a = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> u = torch.tensor([[[1.0], [2.0]]])
        >>> row_products(a, u, u).tolist()  # 5 * 1 + 9 * 4, 1 + 4
        [[41.0, 5.0]]
    """
    for name, tensor in (("a", a), ("u", u), ("w", w)):
        _validate.real_tensor(name, tensor)
    if a.dim() != 2:
        raise ValueError(f"a must be a matrix [N, I], got shape {tuple(a.shape)}")
    if u.dim() != 3 or u.shape[1] != a.shape[0]:
        raise ValueError(
            f"u must be [R, N, O] with N = {a.shape[0]}, the rows of a, got shape {tuple(u.shape)}"
        )
    if w.shape != u.shape:
        raise ValueError(
            f"w must have the shape of u, {tuple(u.shape)}, got shape {tuple(w.shape)}"
        )
    for name, tensor in (("u", u), ("w", w)):
        if tensor.dtype != a.dtype or tensor.device != a.device:
            raise ValueError(
                f"{name} must be {a.dtype} on {a.device}, as a is, got {tensor.dtype} on {tensor.device}"
            )
    run = _floats_only(backend, implementation(backend, a.device), a.dtype, a.device)
    sums: Tensor = run.row_products(a.detach(), u.detach(), w.detach())
    return sums

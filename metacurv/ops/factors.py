"""What activation space is made of: ``softmax_factor`` and ``row_products``."""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.ops.arguments import probe_argument
from metacurv.ops.backend import as_int64, implementation


def _check_served(backend: str, dtype: torch.dtype, device: torch.device) -> None:
    """Raises RuntimeError where kernels are asked for by name and none is compiled for the dtype."""
    if backend == "native" and dtype not in (torch.float32, torch.float64):
        raise RuntimeError(
            f"backend='native' serves float32 and float64 here, got {dtype} on {device}"
        )


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
    _check_served(backend, sqrt_p.dtype, sqrt_p.device)
    first = probe_argument(probe, sqrt_p.device)
    return run.softmax_factor(
        sqrt_p.detach(), root.detach(), as_int64(seed), first, checked_number, checked_probes
    )


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
    run = implementation(backend, a.device)
    _check_served(backend, a.dtype, a.device)
    return run.row_products(a.detach(), u.detach(), w.detach())

"""Inner products of per-example gradients, from the factors of these gradients: none is formed where that would cost more.

A layer that uses its weight at T places gives example n the gradient G_n(u) = sum_t u_nt a_nt'. The trace wants

    <G_n(u), G_n(w)> = sum_ts (a_nt . a_ns) (u_nt . w_ns),

and either side may be the cheaper one. With T = 1 both are ||a_n||^2 (u_n . w_n).

Source: Rochette, Manoel, Tramel 2019, "Efficient per-example gradient computations in convolutional neural networks" (factors);
Goodfellow 2015, "Efficient per-example gradient computations" (norms).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# Elements of a temporary: larger products are made a few examples at a time.
_CHUNK = 1 << 22


def row_products(u: Tensor, w: Tensor) -> Tensor:
    """Returns u . w along the last axis: [..., o] -> [...]."""
    products: Tensor = torch.linalg.vecdot(u, w)
    return products


def shared_products(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Returns <G_n(u), G_n(w)> of every example n: [R, n].

    a: [n, g, T, i], inputs in g groups; u, w: [R, n, g, T, o], cotangents.
    """
    n, groups, places, inputs = a.shape
    draws, outputs = u.shape[0], u.shape[-1]
    if places == 1:
        products = row_products(u, w) * row_products(a, a)
        return products.flatten(2).sum(2) if groups > 1 else products[..., 0, 0]
    sides = 1 if u is w else 2
    by_places = places * places * (outputs + inputs / draws)
    by_gradients = places * inputs * outputs * sides
    if by_places < by_gradients:
        size, product = groups * places * places, _by_places
    else:
        size, product = groups * inputs * outputs, _by_gradients
    step = max(1, _CHUNK // max(1, size * draws))
    found = []
    for start in range(0, n, step):
        part = slice(start, start + step)
        u_part = u[:, part]
        found.append(product(a[part], u_part, u_part if u is w else w[:, part]))
    return found[0] if len(found) == 1 else torch.cat(found, dim=1)


def _by_places(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
    of_inputs = a @ a.transpose(-1, -2)  # [n, g, T, T]
    return ((u @ w.transpose(-1, -2)) * of_inputs).flatten(2).sum(2, dtype=torch.float64)


def _by_gradients(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
    of_u = u.transpose(-1, -2) @ a  # [R, n, g, o, i]
    of_w = of_u if u is w else w.transpose(-1, -2) @ a
    return (of_u * of_w).flatten(2).sum(2, dtype=torch.float64)


def patches(
    x: Tensor,
    kernel: tuple[int, ...],
    *,
    stride: tuple[int, ...],
    padding: tuple[int, ...],
    dilation: tuple[int, ...],
    places: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Returns the inputs that each output of a convolution sees: [B, C, *size] -> [B, g, places, C / g x kernel].

    places: the number of outputs along each axis.
    """
    amounts = [amount for p in reversed(padding) for amount in (p, p)]
    x = torch.nn.functional.pad(x, amounts).contiguous()
    batch, channels = x.shape[:2]
    steps = x.stride()[2:]
    windows = x.as_strided(
        (batch, groups, channels // groups, *places, *kernel),
        (
            x.stride(0),
            x.stride(1) * (channels // groups),
            x.stride(1),
            *(s * t for s, t in zip(stride, steps, strict=True)),
            *(d * t for d, t in zip(dilation, steps, strict=True)),
        ),
    )
    axes = len(places)
    order = [0, 1, *range(3, 3 + axes), 2, *range(3 + axes, 3 + 2 * axes)]
    return windows.permute(order).reshape(batch, groups, math.prod(places), -1)

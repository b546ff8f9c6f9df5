"""The twins of ``chain_draws`` and ``chain_columns``, for any device and dtype.

A chain is a stack of layers between a softmax and the data, given from the top: L ``inputs`` [N, I] of the layers, L - 1
``weights`` [O, I], and for each layer but the last what lies below it: the ``slopes`` [N, I] of an elementwise function, or
where ``rectified`` the result of a ReLU, which is positive where its slope is 1. Cotangents u_n of the top layer's output go
down by u <- (u weight) slope. Every layer gives sum_n ||a_n||^2 ||u_n||^2 and sum_n ||u_n||^2, the shares of weight and bias in
the squared norm of per-example gradients. For one draw or column r both are a pair of columns in row r of the result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv.ops._reference.factors import (
    fill_with_probes,
    layer_products,
    random_products,
    reflected_columns,
)
from metacurv.ops._reference.probes import ProbeOps


class ChainOps(ProbeOps):
    """The ops on a whole chain."""

    def chain_draws(
        self,
        log_p: Tensor,
        sample_weight: Tensor,
        seed: int,
        probe: int,
        n_probes: int,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        slopes: Sequence[Tensor],
        rectified: Sequence[bool],
        /,
    ) -> Tensor:
        """Sums squared per-example gradients for ``random_products`` u, whose signs take parameter number 0.

        log_p: [N, C]; sample_weight: [N], or [1] for all, >= 0. Returns float64 [n_probes, 2 L].
        """
        sqrt_p, root = _roots(log_p, sample_weight)
        signs = sqrt_p.new_empty(n_probes, *sqrt_p.shape)
        u = random_products(sqrt_p, root, fill_with_probes(self, signs, seed, probe))
        return _products(u, inputs, weights, slopes, rectified)

    def chain_columns(
        self,
        log_p: Tensor,
        sample_weight: Tensor,
        start: int,
        stop: int,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        slopes: Sequence[Tensor],
        rectified: Sequence[bool],
        /,
    ) -> Tensor:
        """Sums squared per-example gradients for columns start ... stop - 1 of the C - 1 ``reflected_columns`` of the factor.

        log_p: [N, C]; sample_weight: [N], or [1] for all, >= 0. Returns float64 [stop - start, 2 L].
        """
        u = reflected_columns(*_roots(log_p, sample_weight), start, stop)
        return _products(u, inputs, weights, slopes, rectified)


def _products(
    u: Tensor,
    inputs: Sequence[Tensor],
    weights: Sequence[Tensor],
    slopes: Sequence[Tensor],
    rectified: Sequence[bool],
) -> Tensor:
    blocks = [layer_products(inputs[0], u, u)]
    for a, weight, slope, is_rectified in zip(inputs[1:], weights, slopes, rectified, strict=True):
        u = (u @ weight).mul_((slope > 0) if is_rectified else slope)
        blocks.append(layer_products(a, u, u))
    return torch.cat(blocks, dim=1)


def _roots(log_p: Tensor, sample_weight: Tensor) -> tuple[Tensor, Tensor]:
    """Returns sqrt p [N, C] and the square root of each example's weight [N]."""
    sqrt_p = log_p.detach().exp().sqrt_()
    return sqrt_p, sample_weight.to(sqrt_p.dtype).sqrt().expand(len(sqrt_p)).contiguous()


def _draws(
    log_p: Tensor,
    sample_weight: Tensor,
    seed: int,
    probe: int,
    n_probes: int,
    inputs: list[Tensor],
    weights: list[Tensor],
    slopes: list[Tensor],
    rectified: list[bool],
) -> Tensor:
    return log_p.new_empty(n_probes, 2 * len(inputs), dtype=torch.float64)


def _columns(
    log_p: Tensor,
    sample_weight: Tensor,
    start: int,
    stop: int,
    inputs: list[Tensor],
    weights: list[Tensor],
    slopes: list[Tensor],
    rectified: list[bool],
) -> Tensor:
    return log_p.new_empty(stop - start, 2 * len(inputs), dtype=torch.float64)


SHAPES: dict[str, Callable[..., Any]] = {"chain_draws": _draws, "chain_columns": _columns}

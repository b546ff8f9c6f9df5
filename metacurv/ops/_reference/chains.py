"""Compositions of smaller ops that make ``chain_draws`` and ``chain_columns``, for any device and dtype.

A chain is a stack of layers between a softmax and the data, given from the top: L ``inputs`` [N, I] of the layers, L - 1
``weights`` [O, I], and for each layer but the last what lies below it: the ``slopes`` [N, I] of an elementwise function, or
where ``rectified`` the result of a ReLU, which is positive where its slope is 1. Cotangents u_n of the top layer's output go
down by u <- (u weight) slope. Every layer gives sum_n ||a_n||^2 ||u_n||^2 and sum_n ||u_n||^2, the shares of weight and bias in
the squared norm of per-example gradients. For one draw or column r both are a pair of columns in row r of the result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv.ops._reference.factors import FactorOps


class ChainOps(FactorOps):
    """The ops on a whole chain, made of those on one layer."""

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
    ) -> Tensor:
        """Sums squared per-example gradients for random cotangents u = ``softmax_factor``, whose signs take parameter number 0.

        log_p: [N, C]; sample_weight: [N], or [1] for all, >= 0. Returns float64 [n_probes, 2 L].
        """
        sqrt_p, root = _roots(log_p, sample_weight)
        u = self.softmax_factor(sqrt_p, root, seed, probe, 0, n_probes)
        return self._products(u, inputs, weights, slopes, rectified)

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
    ) -> Tensor:
        """Sums squared per-example gradients for columns start ... stop - 1 of the C - 1 ``reflected_columns`` of the factor.

        log_p: [N, C]; sample_weight: [N], or [1] for all, >= 0. Returns float64 [stop - start, 2 L].
        """
        u = reflected_columns(*_roots(log_p, sample_weight), start, stop)
        return self._products(u, inputs, weights, slopes, rectified)

    def _products(
        self,
        u: Tensor,
        inputs: Sequence[Tensor],
        weights: Sequence[Tensor],
        slopes: Sequence[Tensor],
        rectified: Sequence[bool],
    ) -> Tensor:
        blocks = [self.row_products(inputs[0], u, u)]
        for a, weight, slope, is_rectified in zip(
            inputs[1:], weights, slopes, rectified, strict=True
        ):
            u = (u @ weight).mul_((slope > 0) if is_rectified else slope)
            blocks.append(self.row_products(a, u, u))
        return torch.cat(blocks, dim=1)


def reflected_columns(q: Tensor, root: Tensor, start: int, stop: int) -> Tensor:
    """Returns columns start + 1 ... stop of diag(root q) (I - v v' / (1 + q_0)) with v = q + e_0.

    The second factor is a reflection that takes q to -e_0. q: [N, C], rows of length 1; root: [N]. The result is [stop - start,
    N, C].
    """
    scaled = q * root.unsqueeze(1)
    v = q.clone()
    v[:, 0] += 1
    chosen = slice(start + 1, stop + 1)
    factors = (q[:, chosen] / v[:, :1]).t().unsqueeze(2)  # [R, N, 1]
    columns = factors * (scaled * v).neg_()
    columns[:, :, chosen].diagonal(dim1=0, dim2=2).add_(scaled[:, chosen])
    return columns


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


SHAPES = {"chain_draws": _draws, "chain_columns": _columns}

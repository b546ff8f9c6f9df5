"""Factors of a loss's Hessian and products of per-example gradients, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv.ops._reference.probes import ProbeOps
from metacurv.ops._reference.scalars import scalar
from metacurv.ops._reference.sums import PIECE, halved, in_order

SUM_LANES = 32  # partial sums of a row of softmax_factor


class FactorOps(ProbeOps):
    """The ops of activation space."""

    def softmax_factor(
        self,
        sqrt_p: Tensor,
        root: Tensor,
        seed: int,
        probe: int | Tensor,
        number: int,
        n_probes: int,
    ) -> Tensor:
        """Returns u_k = root (t - t^2 sum_c t) with t = sqrt_p v_k: sqrt_p [M, C], root [M] -> u [n_probes, M, C].

        Element c of a row is added to lane c % 32 in index order, in float64; then the lanes are halved as a tree. The sum is
        rounded to sqrt_p's dtype, in which the rest is done.
        """
        u = sqrt_p.new_empty(n_probes, *sqrt_p.shape)
        if u.numel() == 0:
            return u
        first = scalar(probe, torch.int64, sqrt_p.device)
        for k in range(n_probes):
            self.rademacher_([u[k]], seed, first + k, [number], [0])
            t = sqrt_p * u[k]
            sums = _row_sums(t).to(t.dtype)
            u[k] = root.unsqueeze(1) * (t - t * t * sums.unsqueeze(1))
        return u

    def row_products(self, a: Tensor, u: Tensor, w: Tensor) -> Tensor:
        """Returns sum_n ||a_n||^2 (u_rn . w_rn) and sum_n u_rn . w_rn: a [N, I], u and w [R, N, O] -> float64 [R, 2]."""
        norms = a.to(torch.float64).square().sum(1)
        draws = max(1, PIECE // max(1, u.shape[1] * u.shape[2]))
        products = torch.cat(
            [
                (u_piece.to(torch.float64) * w_piece.to(torch.float64)).sum(2)
                for u_piece, w_piece in zip(
                    torch.split(u, draws), torch.split(w, draws), strict=True
                )
            ]
        )
        return torch.stack([products @ norms, products.sum(1)], dim=1)


def _row_sums(rows: Tensor) -> Tensor:
    """Returns the sum of each row of [M, C]: float64 [M]."""
    steps = -(-rows.shape[1] // SUM_LANES)
    padded = torch.nn.functional.pad(rows.to(torch.float64), (0, steps * SUM_LANES - rows.shape[1]))
    return halved(in_order(padded.view(-1, steps, SUM_LANES), dim=1))


def _factors(
    sqrt_p: Tensor, root: Tensor, seed: int, probe: int | Tensor, number: int, n_probes: int
) -> Tensor:
    return sqrt_p.new_empty(n_probes, *sqrt_p.shape)


def _pairs(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
    return a.new_empty(u.shape[0], 2, dtype=torch.float64)


SHAPES = {"softmax_factor": _factors, "softmax_factor.number": _factors, "row_products": _pairs}

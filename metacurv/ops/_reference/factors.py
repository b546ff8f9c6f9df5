"""Factors of the Hessian of softmax cross-entropy, and products of per-example gradients: what chains and estimators share."""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv.ops._reference.probes import ProbeOps

_CHUNK = 1 << 20  # elements of what is made beside the result at a time


def fill_with_probes(
    run: ProbeOps, signs: Tensor, seed: int, first: int, number: int = 0
) -> Tensor:
    """Fills row k of ``signs`` [K, ...] with the signs of probe ``first`` + k, modulo 2^32, and returns ``signs``."""
    for k, row in enumerate(signs):
        run.rademacher_([row], seed, (first + k) % (1 << 32), [number], [0])
    return signs


def random_products(sqrt_p: Tensor, root: Tensor, signs: Tensor) -> Tensor:
    """Returns products S e with a factor S of the Hessian s (diag(p) - p p') in the logits, and overwrites the signs e.

    S = sqrt(s) (diag(sqrt p) - p sqrt(p)'), since sqrt(p)' sqrt(p) = 1. With t = sqrt(p) e entry by entry, t^2 = p, and
    S e = sqrt(s) (t - t^2 sum_c t).

    sqrt_p: [M, C]; root: [M], the square roots of s; signs: [K, M, C]. The result is [K, M, C].
    """
    for first in range(0, len(root), step := max(1, _CHUNK // (signs[:, :1].numel() or 1))):
        rows = slice(first, first + step)
        t = signs[:, rows].mul_(sqrt_p[rows])
        t.addcmul_(t.square(), t.sum(-1, keepdim=True), value=-1).mul_(root[rows].unsqueeze(-1))
    return signs


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


def layer_products(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
    """Returns sum_n ||a_n||^2 (u_rn . w_rn) and sum_n u_rn . w_rn for every r: float64 [R, 2].

    With a_n the input of a linear layer for example n, and u_rn, w_rn cotangents of its output, these are the shares of the
    layer's weight and bias in sum_n <u_rn a_n', w_rn a_n'>: outer products that are never made. The terms for each n are
    computed in the tensors' own dtype, sums over n in float64.

    a: [N, I]; u, w: [R, N, O].
    """
    plain = torch.linalg.vecdot(u, w)
    weighted = plain * torch.linalg.vecdot(a, a)
    return torch.stack([weighted, plain], dim=1).sum(2, dtype=torch.float64)

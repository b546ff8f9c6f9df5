"""Stochastic Lanczos quadrature: tr f(A) of a symmetric matrix from a few probes, for any function f.

A sign vector v has tr f(A) = E[v' f(A) v]. The m Ritz values theta of the Krylov space that v starts, with the squared first
entries tau of their eigenvectors, are the nodes and weights of a Gauss quadrature: v' f(A) v = n sum tau f(theta), exact for
polynomials of degree 2 m - 1.

Sources: Ubaru, Chen, Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature"; Golub and Meurant 2010,
"Matrices, Moments and Quadrature with Applications", section 6.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.spectrum.krylov import Krylov, Times


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights of one probe, float64 [m], on the host; the weights add up to 1."""

    nodes: Tensor
    weights: Tensor


def quadratures(
    times: Times, probe: Tensor, steps: int, each: Callable[[], None]
) -> tuple[Quadrature, Quadrature]:
    """Returns the quadrature after at most ``steps`` products, and that of its first three quarters, which tells its error.

    ``each`` is called after each product.
    """
    space = Krylov(times, lambda: probe, steps)
    while space.size < min(steps, len(probe)):
        space.extend()
        each()
        if space.rest == 0:  # nothing of the spectrum that the probe sees is missing
            break
    whole = _quadrature(space.projected)
    if space.rest == 0:
        return whole, whole
    return whole, _quadrature(space.projected[: 3 * steps // 4 or 1, : 3 * steps // 4 or 1])


def _quadrature(projected: Tensor) -> Quadrature:
    nodes, vectors = torch.linalg.eigh(projected)
    return Quadrature(nodes, vectors[0].square())

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
from typing import NamedTuple

import torch
from torch import Tensor

from metacurv.estimators.spectrum.krylov import Krylov, Times


@dataclass(frozen=True)
class Quadrature:
    """Nodes and weights of one probe, float64 [m], on the host; the weights add up to 1."""

    nodes: Tensor
    weights: Tensor


class Quadratures(NamedTuple):
    """The quadratures of one probe: ``whole``, ``part`` of its products, and the interval of eigenvalues that it reaches."""

    whole: Quadrature
    part: Quadrature
    low: float
    high: float


def quadratures(
    times: Times, probe: Tensor, steps: int, eps: float, each: Callable[[], None]
) -> Quadratures:
    """Returns the quadrature after at most ``steps`` products, and that of its first three quarters, which tells its error.

    ``eps``: see ``Krylov``. ``each`` is called after each product.
    """
    most = min(steps, len(probe))
    space = Krylov(times, probe, most + 1, eps)
    while (
        space.size < most and space.waiting
    ):  # else nothing of the spectrum that the probe sees is missing
        space.extend()
        each()
    whole, reach = _quadrature(space.projected), space.reach()
    if not space.waiting:
        return Quadratures(whole, whole, *reach)
    part = max(1, 3 * most // 4)
    return Quadratures(whole, _quadrature(space.projected[:part, :part]), *reach)


def _quadrature(projected: Tensor) -> Quadrature:
    nodes, vectors = torch.linalg.eigh(projected)
    return Quadrature(nodes, vectors[0].square())

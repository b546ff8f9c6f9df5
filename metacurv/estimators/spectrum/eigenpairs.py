"""Eigenvalues at the ends of the spectrum, with eigenvectors and a bound of the error of each: restarted Lanczos.

The space is restarted with its best Ritz vectors when it is full ("thick restart"). A Ritz pair (theta, x) with the residual
r = ||A x - theta x|| has an eigenvalue within r of theta; where the rest of the spectrum is at a distance g, the error is at
most r^2 / g, which is far smaller.

Sources: Wu and Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems"; Parlett 1998, "The Symmetric
Eigenvalue Problem", theorem 11.7.1 (Kato and Temple's bound).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metacurv.estimators.spectrum.krylov import Krylov, Times

End = Literal["magnitude", "algebraic"]


@dataclass(frozen=True)
class Eigenpairs:
    """Eigenpairs that were found.

    ``values``, ``residuals``, ``errors``: float64 [k], the largest first. ``vectors``: [k, n]. ``errors`` are the smaller one
    of both bounds, the second of which takes the gaps between Ritz values for those between eigenvalues.
    """

    values: Tensor
    residuals: Tensor
    errors: Tensor
    vectors: Tensor
    n_products: int
    converged: bool


def eigenpairs(
    times: Times,
    fresh: Callable[[], Tensor],
    k: int,
    *,
    end: End,
    rtol: float,
    most_held: int,
    most_products: int,
    each: Callable[[], None],
) -> Eigenpairs:
    """Finds the ``k`` largest eigenvalues of a symmetric matrix.

    Args:
        times: the matrix.
        fresh: gives random vectors [n], from the first of which the search starts. It may find one of several equal
            eigenvalues, as a vector's products show one eigenvector of each.
        k: the number of eigenpairs, at most n.
        end: "magnitude": the largest absolute values; "algebraic": the largest values.
        rtol: the search ends when each error is at most this share of its value.
        most_held: the largest number of vectors to hold, at least 2 k + 2 or n.
        most_products: the largest number of products.
        each: is called after each product.
    """
    space = Krylov(times, fresh, most_held)
    n_products = 0
    while True:
        space.extend()
        n_products += 1
        each()
        is_last = space.is_whole or n_products >= most_products
        if space.size < k and not is_last:
            continue
        theta, coordinates = torch.linalg.eigh(space.projected)
        order = ordered(theta, end)
        theta, coordinates = theta[order], coordinates[:, order]
        residuals = space.rest * coordinates[-1].abs() + space.rounding
        errors = _errors(theta, residuals, min(k, len(theta))) + space.rounding
        wanted = (rtol * theta[:k].abs()).clamp(min=3 * space.rounding)
        converged = len(theta) >= k and bool((errors <= wanted).all())
        if converged or is_last:
            count = min(k, len(theta))
            return Eigenpairs(
                theta[:count],
                residuals[:count],
                errors,
                space.combined(coordinates[:, :count]),
                n_products,
                converged or space.is_whole,
            )
        if space.is_full:
            kept = k + (space.size - k) // 2
            space.restart(coordinates[:, :kept], theta[:kept])


def ordered(theta: Tensor, end: End) -> Tensor:
    """Returns the places of eigenvalues, the largest first."""
    return (theta.abs() if end == "magnitude" else theta).argsort(descending=True)


def _errors(theta: Tensor, residuals: Tensor, count: int) -> Tensor:
    """Returns bounds of the errors of the first ``count`` Ritz values, float64 [count].

    The gap of a value is its distance to the nearest other one, less that one's residual; of a single value it is not known.
    """
    distances = (theta[:count, None] - theta).abs() - residuals
    distances[torch.arange(count), torch.arange(count)] = torch.inf
    residual = residuals[:count]
    if len(theta) == 1:
        return residual
    gaps = distances.amin(1)
    return torch.where(gaps > residual, residual * (residual / gaps), residual)

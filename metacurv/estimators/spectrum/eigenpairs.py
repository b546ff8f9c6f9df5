"""Eigenvalues at the ends of the spectrum, with eigenvectors and a bound of the error of each: restarted Lanczos.

The space is restarted with its best Ritz vectors when it is full ("thick restart"). A Ritz pair (theta, x) with the residual
r = ||A x - theta x|| has an eigenvalue within r of theta; where the rest of the spectrum is at a distance g, the error is at
most r^2 / g, which is far smaller. That distance is taken from the Ritz values, which may lack an eigenvalue that the space
has not seen yet. So the search does not end before values have stayed as they are for some products, and before a random
vector has been added, the products of which would show what the first one hid, such as the second of two equal eigenvalues.

Sources: Wu and Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems"; Parlett 1998, "The Symmetric
Eigenvalue Problem", theorem 11.7.1 (Kato and Temple's bound).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from metacurv.estimators.spectrum.krylov import Krylov, Times

End = Literal["magnitude", "algebraic"]

_COARSE = (
    1e-2  # the error of rounding, as a share of the largest value, beyond which nothing counts as 0
)
_STEADY = 4  # products for which values must have stayed
_MORE = 4  # Ritz values beyond those that are asked for
_CONFIRMING = 0.25  # as many products again, of those before, confirm values after a random vector
_FEWEST = 6  # of these


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenpairs that were found.

    ``values``, ``residuals``, ``errors``: float64 [k], the largest first. ``vectors``: [k, n]. ``errors`` are the smaller one
    of both bounds, the second of which takes the gaps between Ritz values for those between eigenvalues; at least what a value
    has moved by of late, and rounding. ``is_rounded``: True where rounding keeps errors from getting smaller.
    """

    values: Tensor
    residuals: Tensor
    errors: Tensor
    vectors: Tensor
    n_products: int
    converged: bool
    is_rounded: bool


@dataclass(frozen=True, eq=False)
class _Look:
    """Holds what the space shows after a product, the largest first."""

    theta: Tensor
    coordinates: Tensor
    residuals: Tensor
    errors: Tensor  # of the first k, and below what rounding leaves of them
    floors: Tensor


def eigenpairs(
    times: Times,
    fresh: Callable[[], Tensor],
    k: int,
    *,
    end: End,
    rtol: float,
    most_held: int,
    most_products: int,
    eps: float,
    each: Callable[[], None],
) -> Eigenpairs:
    """Finds the ``k`` largest eigenvalues of a symmetric matrix.

    Args:
        times: the matrix.
        fresh: gives random vectors [n], from the first of which the search starts.
        k: the number of eigenpairs, at most n.
        end: "magnitude": the largest absolute values; "algebraic": the largest values.
        rtol: the search ends when each error is at most this share of its value.
        most_held: the largest number of vectors to hold, at least 2 k + 6 or n + 1.
        most_products: the largest number of products, at least k.
        eps: see ``Krylov``.
        each: is called after each product.
    """
    space = Krylov(times, fresh(), most_held, eps)
    before: deque[Tensor] = deque(maxlen=_STEADY)
    n_products, confirmed_after = 0, 0
    while True:
        space.extend()
        n_products += 1
        each()
        is_last = space.is_whole or n_products >= most_products
        look = _look(space, k, end, before)
        before.append(look.theta[:k])
        wanted = rtol * look.theta[:k].abs()
        # What is 0 up to rounding, in numbers that have some digits, has no digits to be right in.
        is_zero = look.theta[:k].abs() <= look.floors
        is_zero &= look.floors <= _COARSE * look.theta.abs().max()
        is_met = (look.errors <= wanted) | is_zero
        is_rounded = bool((look.errors <= torch.maximum(wanted, look.floors)).all())
        is_steady = space.size >= k + _MORE and len(before) == _STEADY and is_rounded
        if is_last or (is_steady and confirmed_after and n_products >= confirmed_after):
            count = min(k, len(look.theta))
            converged = count == k and bool(is_met.all()) and (is_steady or space.is_whole)
            return Eigenpairs(
                look.theta[:count],
                look.residuals[:count],
                look.errors,
                space.combined(look.coordinates[:, :count]),
                n_products,
                converged,
                is_rounded and not converged,
            )
        if is_steady and not confirmed_after:
            confirmed_after = n_products + max(_FEWEST, round(_CONFIRMING * n_products))
            wants_fresh = True
        else:
            wants_fresh = not space.waiting
        wants_fresh = wants_fresh and space.lacks > 0
        if space.room < 1 + wants_fresh:
            kept = k + (space.size - k) // 2
            space.restart(look.coordinates[:, :kept], look.theta[:kept])
        if wants_fresh:
            space.add(fresh)


def ordered(theta: Tensor, end: End) -> Tensor:
    """Returns the places of eigenvalues, the largest first."""
    return (theta.abs() if end == "magnitude" else theta).argsort(descending=True)


def _look(space: Krylov, k: int, end: End, before: deque[Tensor]) -> _Look:
    theta, coordinates = torch.linalg.eigh(space.projected)
    order = ordered(theta, end)
    theta, coordinates = theta[order], coordinates[:, order]
    residuals = space.residuals(coordinates)
    errors = gap_errors(theta, residuals, min(k, len(theta)))
    for values in before:
        if len(values) == len(errors):
            errors = torch.maximum(errors, (values - theta[:k]).abs())
    floors = 4 * space.floors(coordinates[:, : len(errors)])
    return _Look(theta, coordinates, residuals, errors + space.rounding, floors)


def gap_errors(theta: Tensor, residuals: Tensor, count: int) -> Tensor:
    """Returns bounds of the errors of the first ``count`` Ritz values, float64 [count].

    The gap of a value is its distance to the nearest other one, less that one's residual; of a single value it is not known.
    """
    residual = residuals[:count]
    if len(theta) == 1:
        return residual
    distances = (theta[:count, None] - theta).abs() - residuals
    distances[torch.arange(count), torch.arange(count)] = torch.inf
    gaps = distances.amin(1)
    return torch.where(gaps > residual, residual * (residual / gaps), residual)

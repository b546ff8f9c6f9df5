"""Krylov spaces of a symmetric matrix that is known by its products, with full reorthogonalisation.

A basis V of orthonormal rows and the projection T = V A V' grow by one product each. T comes from the inner products that make
the next vector orthogonal, so that it is right after a restart too, where it is no longer tridiagonal.

Sources: Lanczos 1950, "An iteration method for the solution of the eigenvalue problem of linear differential and integral
operators"; Parlett 1998, "The Symmetric Eigenvalue Problem", chapter 13 (orthogonalising twice is enough).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

# Maps a vector [n] to its product with the matrix.
Times = Callable[[Tensor], Tensor]

_ROUNDING = (
    16.0  # units in the last place of the largest product, which products are taken to be off by
)
_FOUND_ALL = 4.0  # as many roundings are left of a product whose direction the basis already holds


class Krylov:
    """A Krylov space that starts with one vector.

    Args:
        times: the matrix, symmetric.
        fresh: gives a random vector [n]; the first one starts the space, and another one follows where products add nothing.
        most: the largest number of basis vectors to be held at once.

    Attributes:
        size: the number of basis vectors that have been multiplied.
        rest: the norm of what the last product added to the basis; 0 where the basis spans an invariant subspace.
    """

    def __init__(self, times: Times, fresh: Callable[[], Tensor], most: int) -> None:
        self._times, self._fresh = times, fresh
        start = fresh()
        self._basis = start.new_empty(min(most, len(start)) + 1, len(start))
        self._basis[0] = start / start.norm()
        self._projected = torch.zeros(most + 1, most + 1, dtype=torch.float64)
        self._scale = 0.0  # the largest norm of a product, a lower bound of the matrix's
        self.size = 0
        self.rest = 0.0

    @property
    def basis(self) -> Tensor:
        """The orthonormal basis, [size, n]."""
        return self._basis[: self.size]

    @property
    def projected(self) -> Tensor:
        """The projection of the matrix on the basis, float64 [size, size], on the host."""
        return self._projected[: self.size, : self.size]

    @property
    def is_whole(self) -> bool:
        """Tells whether the basis spans all there is."""
        return self.size == self._basis.shape[1]

    @property
    def is_full(self) -> bool:
        """Tells whether the next product needs a restart first."""
        return self.size + 1 >= len(self._basis)

    def extend(self) -> None:
        """Multiplies the last basis vector, and takes what is new in the product for the next one."""
        last = self.size
        w = self._times(self._basis[last])
        length = float(w.norm())
        if not math.isfinite(length):
            raise ValueError(f"products with the matrix must be finite, got a norm of {length}")
        self._scale = max(self._scale, length)
        w, column = self._orthogonal(w, last + 1)
        self._projected[: last + 1, last] = column
        self._projected[last, : last + 1] = column
        self.size = last + 1
        self.rest = float(w.norm())
        if self.is_whole or self.rest <= _FOUND_ALL * self.rounding:
            self.rest = 0.0
            if self.is_whole:
                return
            # The matrix has nothing to add: eigenvectors orthogonal to the basis need a vector of their own.
            w, _ = self._orthogonal(self._fresh(), self.size)
        self._basis[self.size] = w / w.norm()

    @property
    def rounding(self) -> float:
        """The error of a product that rounding leaves, as far as can be told."""
        return _ROUNDING * torch.finfo(self._basis.dtype).eps * self._scale

    def _orthogonal(self, w: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns what of ``w`` is orthogonal to the first vectors, and its inner products with them, float64 on the host."""
        held = self._basis[:count]
        inner = held @ w
        w = torch.addmv(w, held.t(), inner, alpha=-1)
        again = held @ w
        w.addmv_(held.t(), again, alpha=-1)
        return w, (inner.double() + again.double()).cpu()

    def restart(self, vectors: Tensor, values: Tensor) -> None:
        """Keeps Ritz vectors alone as the basis, and goes on with the vector that was to come next.

        Args:
            vectors: their coordinates, float64 [size, kept].
            values: their Ritz values, float64 [kept].
        """
        kept = vectors.shape[1]
        coordinates = vectors.t().to(self._basis)
        following = self._basis[self.size].clone()
        self._basis[:kept] = coordinates @ self.basis
        self._basis[kept] = following
        self._projected.zero_()
        self._projected[:kept, :kept] = torch.diag(values)
        self.size = kept

    def combined(self, vectors: Tensor) -> Tensor:
        """Returns the vectors with coordinates ``vectors``, float64 [size, k], as rows [k, n]."""
        return vectors.t().to(self._basis) @ self.basis

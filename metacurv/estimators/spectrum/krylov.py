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

from metacurv.estimators.problem.user_state import plain_arithmetic

# Maps a vector [n] to its product with the matrix.
Times = Callable[[Tensor], Tensor]

_ROUNDING = (
    16.0  # units in the last place of the largest product, which products are taken to be off by
)
_FOUND_ALL = 4.0  # as many roundings are left of a product whose direction the basis already holds
_SMALL = 1e-2  # the share of a product below which what is new in it is orthogonalised once more
_NEW = 0.1  # the share of a random vector that must be new, or it is orthogonalised, or drawn, once more
_CHUNK = 1 << 16  # elements of each vector that are combined at a time


class Krylov:
    """A Krylov space that starts with one vector, and to which others may be added.

    Args:
        times: the matrix, symmetric.
        start: the first vector [n], not 0.
        most: the largest number of basis vectors to be held at once, those to come included.
        eps: the spacing of the numbers that products are made of, relative; those of the vectors may be finer.

    Attributes:
        size: the number of basis vectors that have been multiplied.
        waiting: the number of those that have not; 0 where the basis spans an invariant subspace.
    """

    def __init__(self, times: Times, start: Tensor, most: int, eps: float) -> None:
        self._times, self._eps = times, max(eps, torch.finfo(start.dtype).eps)
        held = min(most, len(start))
        self._basis = start.new_empty(held, len(start))
        self._basis[0] = start / start.norm()
        # Inner products of basis vectors (rows) with the products of those that have been multiplied (columns).
        self._inner = torch.zeros(held, held, dtype=torch.float64)
        self._lost = torch.zeros(held, dtype=torch.float64)  # what of each product was left out
        self._scale = 0.0  # the largest norm of a product, a lower bound of the matrix's
        self.size, self.waiting = 0, 1

    @property
    def basis(self) -> Tensor:
        """The orthonormal basis, [size, n]."""
        return self._basis[: self.size]

    @property
    def projected(self) -> Tensor:
        """The projection of the matrix on the basis, float64 [size, size], on the host."""
        return self._inner[: self.size, : self.size]

    def residuals(self, vectors: Tensor) -> Tensor:
        """Returns ||A x - theta x|| of Ritz vectors with coordinates ``vectors``, float64 [size, k]: what waits outside."""
        outside = self._inner[self.size : self.size + self.waiting, : self.size]
        lengths: Tensor = torch.linalg.vector_norm(outside @ vectors, dim=0)
        return lengths + self.floors(vectors)

    def floors(self, vectors: Tensor) -> Tensor:
        """Returns the parts of ``residuals`` that more products do not make smaller: rounding, and what it hides."""
        return self._lost[: self.size] @ vectors.abs() + self.rounding

    def reach(self) -> tuple[float, float]:
        """Returns the outermost Ritz values, less and more by their residuals."""
        theta, vectors = torch.linalg.eigh(self.projected)
        residuals = self.residuals(vectors[:, [0, -1]])
        return float(theta[0] - residuals[0]), float(theta[-1] + residuals[1])

    @property
    def is_whole(self) -> bool:
        """Tells whether the basis spans all there is."""
        return self.size == self._basis.shape[1]

    @property
    def room(self) -> float:
        """The number of vectors that can be added before a restart; infinite where the whole space is held."""
        held, n = self._basis.shape
        return math.inf if held == n else held - self.size - self.waiting

    @property
    def lacks(self) -> int:
        """The number of directions that the basis does not hold."""
        return self._basis.shape[1] - self.size - self.waiting

    @property
    def rounding(self) -> float:
        """The error of a product that rounding leaves, as far as can be told."""
        return _ROUNDING * self._eps * self._scale

    def extend(self) -> None:
        """Multiplies the first vector that waits; what is new in the product waits next. It needs ``waiting`` and room for it.

        Raises:
            ValueError: the product is not finite.
        """
        w = self._times(self._basis[self.size])
        with plain_arithmetic(w.device):
            length = float(w.norm())
            if not math.isfinite(length):
                raise ValueError(f"products with the matrix must be finite, got a norm of {length}")
            self._scale = max(self._scale, length)
            count = self.size + self.waiting
            w, inner = self._orthogonal(w, count)
            self._inner[:count, self.size] = inner
            self._inner[self.size, :count] = inner
            self.size, self.waiting = self.size + 1, self.waiting - 1
            rest = float(w.norm())
            self._lost[self.size - 1] = 0.0
            if count == self._basis.shape[1]:
                return
            if rest <= _FOUND_ALL * self.rounding:
                self._lost[self.size - 1] = rest
                return
            # A small rest is a difference of large numbers, which leaves it less orthogonal.
            if rest < _SMALL * length:
                w, _ = self._orthogonal(w / rest, count)
                w *= rest / float(w.norm())
            self._basis[count] = w / rest
            self._inner[count, self.size - 1] = rest
            self.waiting += 1

    def add(self, fresh: Callable[[], Tensor]) -> None:
        """Lets what is new in a random vector wait, as where products add nothing; it needs room."""
        count = self.size + self.waiting
        with plain_arithmetic(self._basis.device):
            while True:
                w = fresh()
                w = w / w.norm()
                for _ in range(3):
                    w, _ = self._orthogonal(w, count)
                    left = float(w.norm())
                    if left > _NEW:
                        self._basis[count] = w / left
                        self._inner[count] = 0
                        self.waiting += 1
                        return
                    if left < math.sqrt(torch.finfo(w.dtype).eps):
                        break  # too little to tell it from rounding
                    w = w / left

    def _orthogonal(self, w: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Returns what of ``w`` is orthogonal to the first vectors, and its inner products with them, float64 on the host."""
        held = self._basis[:count]
        inner = held @ w
        w = torch.addmv(w, held.t(), inner, alpha=-1)
        again = held @ w
        w.addmv_(held.t(), again, alpha=-1)
        return w, (inner.double() + again.double()).cpu()

    def restart(self, vectors: Tensor, values: Tensor) -> None:
        """Keeps Ritz vectors alone of the basis, and all vectors that wait.

        Args:
            vectors: their coordinates, float64 [size, kept].
            values: their Ritz values, float64 [kept].
        """
        kept, count = vectors.shape[1], self.size + self.waiting
        outside = self._inner[self.size : count, : self.size] @ vectors
        coordinates = vectors.t().to(self._basis)
        with plain_arithmetic(self._basis.device):
            for start in range(0, self._basis.shape[1], _CHUNK):
                some = slice(start, start + _CHUNK)
                self._basis[:kept, some] = coordinates @ self._basis[: self.size, some]
        for place in range(self.waiting):
            self._basis[kept + place] = self._basis[self.size + place].clone()
        self._lost[:kept] = self._lost[: self.size] @ vectors.abs()
        self._inner.zero_()
        self._inner[:kept, :kept] = torch.diag(values)
        self._inner[kept : kept + self.waiting, :kept] = outside
        self._inner[:kept, kept : kept + self.waiting] = outside.t()
        self.size = kept

    def combined(self, vectors: Tensor) -> Tensor:
        """Returns the vectors with coordinates ``vectors``, float64 [size, k], as rows [k, n]."""
        with plain_arithmetic(self._basis.device):
            return vectors.t().to(self._basis) @ self.basis

"""One square block of a curvature matrix, or the whole of it, as what Krylov spaces multiply by."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.problem.numerics import wide_dtype
from metacurv.estimators.spectrum.matrix import Matrix


class Block:
    """The block of some parameters.

    Args:
        matrix: the whole matrix.
        names: the parameters; None for all of them.

    Attributes:
        size: the number of its rows.
        dtype: that of its vectors, float32 at least.
    """

    def __init__(self, matrix: Matrix, names: list[str] | None = None) -> None:
        self._matrix = matrix
        self._places = None if names is None else matrix.places(names)
        self.size = matrix.size if self._places is None else len(self._places)
        self.dtype = wide_dtype(matrix.dtype)

    @property
    def held(self) -> int:
        """The number of vectors that fit into the matrix's ``max_memory``."""
        return self._matrix.max_memory // (self.size * self.dtype.itemsize)

    def times(self, vector: Tensor) -> Tensor:
        """Returns the product with a vector [size]."""
        if self._places is None:
            return self._matrix.times(vector.unsqueeze(1))[:, 0]
        whole = vector.new_zeros(self._matrix.size, 1)
        whole[self._places, 0] = vector
        return self._matrix.times(whole)[self._places, 0]

    def pick(self, whole: Tensor) -> Tensor:
        """Returns the block's part [size] of a flat vector [P]."""
        part: Tensor = whole if self._places is None else whole[self._places]
        return part.to(self.dtype)

    def spread(self, vectors: Tensor) -> Tensor:
        """Returns vectors [k, size] as columns of the whole matrix's, [P, k], with zeros elsewhere."""
        if self._places is None:
            return vectors.t()
        whole = vectors.new_zeros(self._matrix.size, len(vectors))
        whole[self._places] = vectors.t()
        return whole

    def normals(self, seed: int) -> Callable[[], Tensor]:
        """Returns a source of random vectors [size] with normal entries, the same on every device."""
        generator = torch.Generator().manual_seed(seed % (1 << 63))

        def fresh() -> Tensor:
            drawn = torch.randn(self.size, generator=generator)
            return drawn.to(self._matrix.device, self.dtype)

        return fresh

    def signs(self, seed: int, backend: str) -> Callable[[], Tensor]:
        """Returns a source of sign vectors [size], in the order of the probes of ``seed``."""
        run, key = ops.implementation(backend, self._matrix.device), ops.as_int64(seed)
        drawn = 0

        def fresh() -> Tensor:
            nonlocal drawn
            signs = torch.empty(self.size, dtype=self.dtype, device=self._matrix.device)
            probe = torch.full((), drawn, dtype=torch.int64, device=self._matrix.device)
            run.rademacher_([signs], key, probe, [0], [0])
            drawn += 1
            return signs

        return fresh

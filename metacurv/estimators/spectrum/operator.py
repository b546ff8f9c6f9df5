"""The operator that users multiply vectors with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.estimators.problem.numerics import wide_dtype
from metacurv.estimators.spectrum.matrix import Matrix

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]


class CurvatureOperator:
    """The Hessian or Gauss-Newton matrix of a model's loss, which ``curvature_operator`` makes.

    ``operator @ v`` is the product with one vector (flat [P], or a dict of tensors by parameter name) or with a block of
    vectors [P, K]. The product has the form of ``v``. Flat vectors hold the parameters that require a gradient one after
    another, in the order of ``names``. Each product runs the model anew, so a model that trains has another matrix
    afterwards; random numbers, as of dropout, are those of when the operator was made.

    Args:
        matrix: what ``curvature_operator`` has made of its arguments.
    """

    def __init__(self, matrix: Matrix) -> None:
        self._matrix = matrix

    def __repr__(self) -> str:
        return (
            f"CurvatureOperator(kind={self.kind!r}, shape={self.shape}, dtype={self.dtype}, "
            f"device={self.device})"
        )

    @property
    def shape(self) -> tuple[int, int]:
        """The pair (P, P), with P the number of the parameters' elements."""
        return self._matrix.size, self._matrix.size

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of products with flat vectors, the widest of the parameters'."""
        return self._matrix.dtype

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self._matrix.device

    @property
    def kind(self) -> str:
        """The matrix, "hessian" or "ggn"."""
        return self._matrix.kind

    @property
    def names(self) -> list[str]:
        """The names of the parameters."""
        return list(self._matrix.names)

    @property
    def n_products(self) -> int:
        """The number of products with single vectors so far."""
        return self._matrix.n_products

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def __matmul__(self, other: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Multiplies the matrix with a vector [P], a block of vectors [P, K], or a dict of tensors by parameter name.

        Args:
            other: the vector or vectors.

        Returns:
            The product, in the form of ``other``.

        Raises:
            TypeError: ``other`` is neither a dense real tensor nor a mapping of such.
            ValueError: a shape, name or device is not that of the parameters; the loss cannot be measured.
            NotTwiceDifferentiableError: an operation in the graph of the loss has no second derivative.
        """
        if isinstance(other, Mapping):
            parts = self._checked_parts(other)
            flat = self._matrix.flattened(parts)
            return self._matrix.by_name(self._matrix.times(flat.unsqueeze(1))[:, 0])
        _validate.real_tensor("the vector of a product", other)
        if other.dim() not in (1, 2) or len(other) != self.shape[0]:
            raise ValueError(
                f"the vector of a product must have the shape [{self.shape[0]}] or [{self.shape[0]}, K], got "
                f"{list(other.shape)}"
            )
        if other.device != self.device:
            raise ValueError(
                f"the vector of a product must be on the parameters' device {self.device}, got {other.device}"
            )
        block = other.detach().to(self.dtype)
        return (
            self._matrix.times(block.unsqueeze(1))[:, 0]
            if block.dim() == 1
            else self._matrix.times(block)
        )

    def _checked_parts(self, parts: Mapping[str, Tensor]) -> list[Tensor]:
        if list(parts) != self.names and set(parts) != set(self.names):
            raise ValueError(
                "the dict of a product must have a tensor for each parameter that requires a gradient, "
                f"{', '.join(map(repr, self.names))}; got {', '.join(map(repr, parts)) or 'none'}"
            )
        for name, shape in zip(self.names, self._matrix.shapes, strict=True):
            label = f"the vector's part {name!r}"
            part = _validate.real_tensor(label, parts[name])
            if part.shape != shape or part.device != self.device:
                raise ValueError(
                    f"{label} must have the parameter's shape {list(shape)} and device {self.device}, got "
                    f"{list(part.shape)} on {part.device}"
                )
        return [parts[name].detach() for name in self.names]

    def to_dict(self, flat: Tensor) -> dict[str, Tensor]:
        """Splits a flat vector into tensors by parameter name.

        Args:
            flat: a vector [P], such as a column of ``top_eigenvalues(..., vectors=True).vectors``.

        Returns:
            Tensors of the parameters' shapes and dtypes.

        Raises:
            TypeError: ``flat`` is no dense real tensor.
            ValueError: ``flat`` is of another shape.
        """
        _validate.real_tensor("flat", flat)
        if flat.shape != self.shape[:1]:
            raise ValueError(f"flat must have the shape [{self.shape[0]}], got {list(flat.shape)}")
        return self._matrix.by_name(flat)

    def to_scipy(self) -> LinearOperator:
        """Returns the operator for scipy's solvers, such as ``scipy.sparse.linalg.eigsh``: it takes and returns numpy arrays.

        Returns:
            A ``scipy.sparse.linalg.LinearOperator``.

        Raises:
            ImportError: scipy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise ImportError(
                "to_scipy needs scipy, which is not installed; install it with `pip install scipy`"
            ) from error

        # numpy has no bfloat16, and torch takes no array that runs backwards or may not be written to.
        dtype = wide_dtype(self.dtype)
        of_numpy = torch.empty(0, dtype=dtype).numpy().dtype

        def matmat(block: Any) -> Any:
            given = torch.from_numpy(block.astype(of_numpy, order="C", copy=True)).to(self.device)
            return self._matrix.times(given.view(self.shape[0], -1)).cpu().numpy()

        def matvec(vector: Any) -> Any:
            return matmat(vector)[:, 0]

        return LinearOperator(
            self.shape, matvec=matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat, dtype=of_numpy
        )

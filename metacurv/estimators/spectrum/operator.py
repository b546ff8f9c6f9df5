"""The curvature matrix of all batches on all ranks, as an operator that multiplies vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from metacurv import _validate
from metacurv.estimators.problem.batches import batch_seed, in_batch
from metacurv.estimators.problem.data import Data, Kind
from metacurv.estimators.problem.parameters import number_parameters
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.spectrum.batch_matrix import BatchMatrix
from metacurv.processes.fully_sharded import as_one_process
from metacurv.processes.ranks import Ranks

if TYPE_CHECKING:
    from scipy.sparse.linalg import LinearOperator  # type: ignore[import-untyped]


class CurvatureOperator:
    """The Hessian or Gauss-Newton matrix of a model's loss, which ``curvature_operator`` returns.

    ``operator @ v`` is the product with one vector (flat [P], or a dict of tensors by parameter name) or with a block of
    vectors [P, K]. The result has the form of ``v``; flat vectors hold the parameters that require a gradient one after
    another, in the order of ``names``. Parameters are read at each product, so a model that trains has another matrix
    afterwards.

    Attributes:
        shape: (P, P), with P the number of the parameters' elements.
        dtype: the dtype of products with flat vectors, the widest of the parameters'.
        device: the parameters' device.
        kind: "hessian" or "ggn".
        names: the parameters' names.
        n_products: the number of products with single vectors so far.
    """

    def __init__(
        self, data: Data, kind: Kind, *, ranks: Ranks | None, backend: str, max_memory: int
    ) -> None:
        self.kind = kind
        self.n_products = 0
        self._data, self._ranks = data, ranks
        self.backend, self.max_memory = backend, max_memory
        with self.gathered():
            parameters = number_parameters(data.model.named_parameters(), of_model=True)
            self.names = [p.name for p in parameters]
            self._shapes = [p.tensor.shape for p in parameters]
            self._dtypes = [p.tensor.dtype for p in parameters]
            self.device = parameters[0].tensor.device
        self._sizes = [shape.numel() for shape in self._shapes]
        self.shape = (sum(self._sizes), sum(self._sizes))
        self.dtype = self._dtypes[0]
        for dtype in self._dtypes:
            self.dtype = torch.promote_types(self.dtype, dtype)
        self._kept: tuple[list[tuple[int, int]], tuple[int, BatchMatrix]] | None = None

    def __repr__(self) -> str:
        return f"CurvatureOperator(kind={self.kind!r}, shape={self.shape}, dtype={self.dtype}, device={self.device})"

    def gathered(self) -> AbstractContextManager[object]:
        """Gathers a model of ``fully_shard`` for the length of the block; does nothing to others."""
        if self._ranks is None:
            return nullcontext()
        return as_one_process(self._data.model)

    @property
    def is_over_ranks(self) -> bool:
        """Tells whether the batches of several ranks make up the matrix."""
        return self._ranks is not None and self._ranks.count > 1

    @property
    def is_sum(self) -> bool:
        """Tells whether batches add up, and are not averaged."""
        return self._data.is_sum

    @overload
    def __matmul__(self, other: Tensor) -> Tensor: ...

    @overload
    def __matmul__(self, other: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    def __matmul__(self, other: Tensor | Mapping[str, Tensor]) -> Tensor | dict[str, Tensor]:
        """Returns the product with a vector [P], a block of vectors [P, K], or a dict of tensors by parameter name.

        Raises:
            TypeError: ``other`` is neither a dense real tensor nor a mapping of such.
            ValueError: a shape, name or device is not that of the parameters; the loss cannot be measured.
            NotTwiceDifferentiableError: an operation in the graph of the loss has no second derivative.
        """
        if isinstance(other, Mapping):
            parts = self._checked_parts(other)
            flat = self.flattened(parts)
            return self._by_name(self.times(flat.unsqueeze(1))[:, 0])
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
        return self.times(block.unsqueeze(1))[:, 0] if block.dim() == 1 else self.times(block)

    def _checked_parts(self, parts: Mapping[str, Tensor]) -> list[Tensor]:
        if list(parts) != self.names and set(parts) != set(self.names):
            raise ValueError(
                "the dict of a product must have a tensor for each parameter that requires a gradient, "
                f"{', '.join(map(repr, self.names))}; got {', '.join(map(repr, parts)) or 'none'}"
            )
        for name, shape in zip(self.names, self._shapes, strict=True):
            label = f"the vector's part {name!r}"
            part = _validate.real_tensor(label, parts[name])
            if part.shape != shape or part.device != self.device:
                raise ValueError(
                    f"{label} must have the parameter's shape {list(shape)} and device {self.device}, got "
                    f"{list(part.shape)} on {part.device}"
                )
        return [parts[name].detach() for name in self.names]

    def _by_name(self, flat: Tensor) -> dict[str, Tensor]:
        pieces = zip(
            self.names, torch.split(flat, self._sizes), self._shapes, self._dtypes, strict=True
        )
        return {name: piece.reshape(shape).to(dtype) for name, piece, shape, dtype in pieces}

    def to_dict(self, flat: Tensor) -> dict[str, Tensor]:
        """Splits a flat vector [P] into tensors by parameter name.

        Raises:
            ValueError: ``flat`` is of another shape.
        """
        if flat.shape != self.shape[:1]:
            raise ValueError(f"flat must have the shape [{self.shape[0]}], got {list(flat.shape)}")
        return self._by_name(flat)

    def flattened(self, parts: Sequence[Tensor | None]) -> Tensor:
        """Returns one tensor for each parameter as a flat vector [P]; None stands for zeros."""
        pieces = zip(parts, self._sizes, strict=True)
        return torch.cat(
            [
                torch.zeros(size, dtype=self.dtype, device=self.device)
                if part is None
                else part.reshape(-1).to(self.dtype)
                for part, size in pieces
            ]
        )

    def places(self, names: list[str]) -> Tensor:
        """Returns the places of these parameters' elements in a flat vector, int64 [their number]."""
        starts = dict(
            zip(self.names, torch.tensor([0, *self._sizes]).cumsum(0).tolist(), strict=False)
        )
        sizes = dict(zip(self.names, self._sizes, strict=True))
        ranges = [torch.arange(starts[name], starts[name] + sizes[name]) for name in names]
        return torch.cat(ranges).to(self.device)

    def times(self, block: Tensor) -> Tensor:
        """Returns the product with a block of vectors [P, K] of this operator's dtype and device, which are not checked."""
        with self.gathered():
            total, weight = self.over_ranks(lambda: self._here(block), block.shape, self.dtype)
        self.n_products += block.shape[1]
        return total if self.is_sum else total.div_(weight)

    def over_ranks(
        self, sums: Callable[[], tuple[Tensor, float]], shape: Sequence[int], dtype: torch.dtype
    ) -> tuple[Tensor, float]:
        """Adds up what all ranks' batches give.

        Args:
            sums: returns the sum over this process's batches of a tensor of this shape and dtype, each times its weight, and
                the sum of the weights.
            shape: the tensor's shape.
            dtype: its dtype.

        Raises:
            ValueError: there are no batches.
        """
        if not self.is_over_ranks:
            total, weight = sums()
        else:
            ranks = self._ranks
            assert ranks is not None

            def numbers() -> Tensor:
                total, weight = sums()
                return torch.cat([total.double().flatten(), torch.tensor([weight]).to(like)])

            size = torch.Size(shape).numel()
            like = torch.empty(size + 1, dtype=torch.float64, device=self.device)
            found = ranks.mean(numbers, like) * ranks.count
            total, weight = found[:-1].view(*shape).to(dtype), float(found[-1])
        if not weight:
            raise ValueError("inputs must give at least one batch, got none")
        return total, weight

    def _here(self, block: Tensor) -> tuple[Tensor, float]:
        total, weight = torch.zeros_like(block), 0.0
        for index, (size, matrix) in enumerate(self._matrices()):
            share = 1.0 if self.is_sum else float(size)
            with in_batch(index):
                for column, vector in enumerate(block.t()):
                    total[:, column].add_(self._column(matrix, vector), alpha=share)
            weight += share
        return total, weight

    def _matrices(self) -> Iterator[tuple[int, BatchMatrix]]:
        """Yields each batch's matrix; that of a single batch is kept, with its graph, until a parameter changes."""
        parameters = number_parameters(self._data.model.named_parameters(), of_model=True)
        state = [(id(p.tensor), p.tensor._version) for p in parameters]
        if self._kept is not None and self._kept[0] == state:
            yield self._kept[1]
            return
        self._kept, found = None, []
        for size, batch in self.batches():
            matrix = BatchMatrix(batch)
            found.append(size)
            if len(found) == 1:
                self._kept = state, (size, matrix)
            else:
                self._kept = None
            yield size, matrix

    def _column(self, matrix: BatchMatrix, vector: Tensor) -> Tensor:
        pieces = zip(torch.split(vector, self._sizes), self._shapes, self._dtypes, strict=True)
        parts = matrix.times([piece.view(shape).to(dtype) for piece, shape, dtype in pieces])
        return self.flattened(parts)

    def batches(self, seed: int = 0) -> Iterator[tuple[int, MeasuredBatch]]:
        """Yields this process's batches with their numbers of examples, each with a forward pass to come.

        ``seed``: of the probes, which are others in each batch of each rank.
        """
        parameters = number_parameters(self._data.model.named_parameters(), of_model=True)
        here, count = (0, 1) if self._ranks is None else (self._ranks.here, self._ranks.count)
        for index, (size, problem) in enumerate(self._data.each(parameters)):
            of_batch = batch_seed(seed, index * count + here)
            yield size, MeasuredBatch(problem, self.kind, of_batch, self.backend, self.max_memory)

    def to_scipy(self) -> LinearOperator:
        """Returns the operator for scipy's solvers, such as ``scipy.sparse.linalg.eigsh``: it takes and returns numpy arrays.

        Raises:
            ImportError: scipy is not installed.
        """
        try:
            from scipy.sparse.linalg import LinearOperator
        except ImportError as error:
            raise ImportError(
                "to_scipy needs scipy, which is not installed; install it with `pip install scipy`"
            ) from error

        def matmat(block: Any) -> Any:
            given = torch.as_tensor(block, dtype=self.dtype, device=self.device)
            return self.times(given.view(self.shape[0], -1)).cpu().numpy()

        def matvec(vector: Any) -> Any:
            return matmat(vector)[:, 0]

        # numpy has no bfloat16; the matrix is symmetric.
        dtype = torch.empty(0, dtype=self.dtype).numpy().dtype
        return LinearOperator(
            self.shape, matvec=matvec, rmatvec=matvec, matmat=matmat, rmatmat=matmat, dtype=dtype
        )

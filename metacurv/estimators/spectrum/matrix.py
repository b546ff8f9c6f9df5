"""The curvature matrix of all batches on all ranks, by its products with blocks of flat vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from metacurv import _validate
from metacurv.estimators.problem.batches import batch_seed, in_batch
from metacurv.estimators.problem.data import Data, Kind, check_matrix
from metacurv.estimators.problem.model_loss import LossFunction
from metacurv.estimators.problem.parameters import number_parameters
from metacurv.estimators.problem.user_state import RandomState
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.spectrum.batch_matrix import BatchMatrix
from metacurv.processes.fully_sharded import as_one_process
from metacurv.processes.ranks import Ranks


class Matrix:
    """The Hessian or Gauss-Newton matrix of a model's loss.

    A flat vector holds the parameters that require a gradient one after another, in the order of ``names``. Each product runs
    the model anew, but within ``kept``. All passes see the random numbers that the first one would have seen, so that dropout
    keeps its masks and loaders that shuffle their order.

    Args:
        data: what is measured.
        kind: "hessian" or "ggn".
        ranks: the ranks whose batches make up the matrix; None for this process alone.
        backend: as for ``estimate_trace``.
        max_memory: bytes for what is held at a time by those who use the matrix.
    """

    def __init__(
        self, data: Data, kind: Kind, *, ranks: Ranks | None, backend: str, max_memory: int
    ) -> None:
        self.kind = kind
        self.n_products = 0
        self.backend, self.max_memory = backend, max_memory
        self._data, self._ranks = data, ranks
        with self.gathered():
            parameters = number_parameters(data.model.named_parameters(), of_model=True)
            self.names = [p.name for p in parameters]
            self.shapes = [p.tensor.shape for p in parameters]
            self._dtypes = [p.tensor.dtype for p in parameters]
            self.device = parameters[0].tensor.device
        self._sizes = [shape.numel() for shape in self.shapes]
        self.size = sum(self._sizes)
        self.dtype = self._dtypes[0]
        for dtype in self._dtypes:
            self.dtype = torch.promote_types(self.dtype, dtype)
        self._keeps = False
        self._kept: tuple[int, BatchMatrix] | None = None
        self._random = RandomState(self.device)

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

    def by_name(self, flat: Tensor) -> dict[str, Tensor]:
        """Splits a flat vector into tensors of the parameters' shapes and dtypes, by name."""
        pieces = zip(
            self.names, torch.split(flat, self._sizes), self.shapes, self._dtypes, strict=True
        )
        return {name: piece.reshape(shape).to(dtype) for name, piece, shape, dtype in pieces}

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

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Keeps the graph of a single batch for the products in the block, in which the model must stay as it is."""
        self._keeps = True
        try:
            yield
        finally:
            self._keeps, self._kept = False, None

    def _matrices(self) -> Iterator[tuple[int, BatchMatrix]]:
        """Yields each batch's matrix."""
        if self._kept is not None:
            yield self._kept
            return
        found = None
        for index, (size, batch) in enumerate(self.batches()):
            found = (size, BatchMatrix(batch)) if index == 0 else None
            yield found or (size, BatchMatrix(batch))
        if self._keeps:
            self._kept = found

    def _column(self, matrix: BatchMatrix, vector: Tensor) -> Tensor:
        pieces = zip(torch.split(vector, self._sizes), self.shapes, self._dtypes, strict=True)
        parts = matrix.times([piece.view(shape).to(dtype) for piece, shape, dtype in pieces])
        return torch.cat([part.reshape(-1).to(vector.dtype) for part in parts])

    def batches(self, seed: int = 0) -> Iterator[tuple[int, MeasuredBatch]]:
        """Yields this process's batches with their numbers of examples, each with a forward pass to come.

        ``seed``: of the probes, which are others in each batch of each rank.

        Raises:
            ValueError: other parameters require a gradient than when the matrix was made.
        """
        parameters = number_parameters(self._data.model.named_parameters(), of_model=True)
        if [(p.name, p.tensor.shape) for p in parameters] != list(
            zip(self.names, self.shapes, strict=True)
        ):
            raise ValueError(
                "the parameters that require a gradient must be those of when the operator was made, "
                f"{', '.join(map(repr, self.names))}; got {', '.join(repr(p.name) for p in parameters)}"
            )
        here, count = (0, 1) if self._ranks is None else (self._ranks.here, self._ranks.count)
        with self._random.seen():
            for index, (size, problem) in enumerate(self._data.each(parameters)):
                of_batch = batch_seed(seed, index * count + here)
                batch = MeasuredBatch(problem, self.kind, of_batch, self.backend, self.max_memory)
                yield size, batch

    @property
    def eps(self) -> float:
        """The spacing of the coarsest numbers that products are made of, relative."""
        dtypes = set(self._dtypes)
        if torch.is_autocast_enabled(self.device.type):
            dtypes.add(torch.get_autocast_dtype(self.device.type))
        return max(torch.finfo(dtype).eps for dtype in dtypes)


def make_matrix(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any,
    *,
    kind: Kind,
    max_memory: int,
    backend: str,
    process_group: Any,
    output: Callable[[Any], Any] | None,
    batch_size: int | Callable[[Any], int] | None,
) -> Matrix:
    """Checks what users give, and makes the matrix of it; for arguments and errors see ``curvature_operator``."""
    check_matrix(model, loss_fn, kind)
    _validate.backend(backend)
    memory = _validate.integer("max_memory", max_memory, low=1)
    are_processes = torch.distributed.is_available() and torch.distributed.is_initialized()
    ranks = Ranks(model, process_group) if are_processes or process_group is not None else None
    data = Data(model, loss_fn, inputs, targets, output, batch_size, again=True)
    return Matrix(data, kind, ranks=ranks, backend=backend, max_memory=memory)

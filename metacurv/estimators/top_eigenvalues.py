"""The largest eigenvalues of a whole model's Hessian or Gauss-Newton matrix, with a bound of the error of each."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metacurv import _validate
from metacurv._warnings import warn_user
from metacurv.estimators.problem.data import Kind
from metacurv.estimators.problem.model_loss import LossFunction
from metacurv.estimators.problem.parameters import layers_of
from metacurv.estimators.problem.progress import Bar, bar, check_progress
from metacurv.estimators.spectrum.block import Block
from metacurv.estimators.spectrum.columns import choose_gram
from metacurv.estimators.spectrum.eigenpairs import eigenpairs
from metacurv.estimators.spectrum.gram import GramMatrix
from metacurv.estimators.spectrum.matrix import Matrix, make_matrix
from metacurv.estimators.spectrum.results import TopEigenvalues

_FEW_COLUMNS = (
    1000  # a Gram matrix of so many rows takes less time than a handful of products with the model
)


def top_eigenvalues(
    model: nn.Module,
    loss_fn: LossFunction,
    inputs: Any,
    targets: Any = None,
    *,
    kind: Kind = "hessian",
    k: int = 1,
    largest: Literal["magnitude", "algebraic"] = "magnitude",
    vectors: bool = False,
    by_layer: bool = False,
    method: Literal["auto", "gram", "lanczos"] = "auto",
    rtol: float = 1e-3,
    max_products: int = 1000,
    seed: int = 0,
    max_memory: int = 1 << 30,
    backend: str = "auto",
    process_group: Any = None,
    output: Callable[[Any], Any] | None = None,
    batch_size: int | Callable[[Any], int] | None = None,
    progress: bool | None = None,
) -> TopEigenvalues:
    """Finds the largest eigenvalues of the Hessian or Gauss-Newton matrix (GGN) of ``loss_fn(model(inputs), targets)``.

    - "gram": all eigenvalues at once, exact up to rounding, from the inner products of the loss's factor's columns. It serves
      the GGN of losses with a symmetric factor (cross-entropy, squared error), in one process, and up to 5000 columns (examples
      times classes less one).
    - "lanczos": products with the matrix in a Krylov space that is kept orthogonal, and restarted when it is full.
      It serves every loss that can be differentiated twice.
    - "auto": "gram" where it serves and has at most 1000 columns, else "lanczos"; ``why`` of the result gives the reason.

    The model's state stays as it was, as for ``estimate_trace``.

    Args:
        model: the model; its parameters that require a gradient are measured.
        loss_fn: called with the model's output and the targets; returns a scalar, a mean or a sum over the examples.
        inputs: a batch or an iterable of batches, as for ``estimate_trace``. Each product goes through all of them; an iterator
            that can be used once is kept in memory.
        targets: the second argument of ``loss_fn``; None where ``inputs`` gives it.
        kind: "hessian" or "ggn".
        k: the number of eigenvalues, from 1 to that of the parameters' elements.
        largest: "magnitude" for the largest absolute values, "algebraic" for the largest values.
        vectors: True for the eigenvectors too.
        by_layer: True for the eigenvalues of each module's own block too, k of each or as many as it has, by a search for each.
        method: one of the methods above. "gram" where it does not serve raises ValueError.
        rtol: in (0, 1): the search ends when the error of each value is at most this share of it.
        max_products: the number of products, >= 1, at which ``rtol`` is given up, with a warning and ``converged`` False.
        seed: int in [0, 2^64), of the sign vector that the search starts from.
        max_memory: bytes for the Krylov space, and for the columns' cotangents.
        backend: "auto", "native" or "reference" (see ``metacurv.ops``).
        process_group: the ranks whose batches make up one matrix, as for ``estimate_trace``.
        output: a function that picks from the model's output what ``loss_fn`` gets, as for ``estimate_trace``.
        batch_size: the number of examples in a batch, as for ``estimate_trace``.
        progress: True for a progress bar, False for none; None for one on work of more than three seconds in a terminal.

    Returns:
        The eigenvalues with residuals, and what was asked for.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument is out of range; the loss cannot be measured; "gram" does not serve.
        NotTwiceDifferentiableError: an operation in the graph of the loss has no second derivative.
        ImportError: ``progress`` is True, and tqdm is not installed.

    References:
        - Wu and Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems".
        - Dangel, Tatzel, Hennig 2022, "ViViT: curvature access through the generalized Gauss-Newton's low-rank structure".

    Examples:
        >>> import torch
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> x, y = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.zeros(2, 1)
        >>> found = top_eigenvalues(model, torch.nn.MSELoss(), x, y, kind="ggn", k=2)
        >>> [round(value, 4) for value in found.values.tolist()], found.method
        ([4.0, 1.0], 'gram')
    """
    matrix = make_matrix(
        model,
        loss_fn,
        inputs,
        targets,
        kind=kind,
        max_memory=max_memory,
        backend=backend,
        process_group=process_group,
        output=output,
        batch_size=batch_size,
    )
    search = _Search(
        matrix=matrix,
        k=_validate.integer("k", k, low=1, high=matrix.size + 1),
        largest=_validate.one_of("largest", largest, ("magnitude", "algebraic")),
        rtol=_validate.real("rtol", rtol, above=0, below=1),
        max_products=_validate.integer("max_products", max_products, low=1),
        seed=_validate.seed(seed),
        vectors=_validate.boolean("vectors", vectors),
    )
    _validate.one_of("method", method, ("auto", "gram", "lanczos"))
    _validate.boolean("by_layer", by_layer)
    if search.max_products < search.k:
        raise ValueError(f"max_products must be at least k={search.k}, got {search.max_products}")
    check_progress(progress)
    with matrix.gathered(), matrix.kept():
        gram, why = choose_gram(matrix, method, _FEW_COLUMNS)
        with bar(progress, "eigenvalues", "product") as shown:
            found = search.of(gram, None, why, shown)
            if by_layer:
                layers = layers_of(matrix.names)
                per_layer = {
                    layer: search.of(gram, names, why, shown) for layer, names in layers.items()
                }
                found = dataclasses.replace(found, per_layer=per_layer)
    searches = (found, *found.per_layer.values())
    if any(not one.converged and one.n_products >= search.max_products for one in searches):
        warn_user(
            f"top_eigenvalues stopped at max_products={search.max_products}, before the errors came down to "
            f"rtol={search.rtol:g}; see errors and residuals",
            UserWarning,
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Search:
    """Searches the whole matrix, or a block of it."""

    matrix: Matrix
    k: int
    largest: Literal["magnitude", "algebraic"]
    rtol: float
    max_products: int
    seed: int
    vectors: bool

    def of(
        self, gram: GramMatrix | None, names: Sequence[str] | None, why: str, shown: Bar
    ) -> TopEigenvalues:
        """Searches the block of the parameters of these names."""
        block = Block(self.matrix, None if names is None else list(names))
        k = min(self.k, block.size)
        if gram is not None:
            places = None if names is None else [self.matrix.names.index(name) for name in names]
            found = self._of_gram(gram if places is None else gram.of(places), block, k, why)
            if found is not None:
                return found
            why = f"lanczos: eigenvectors of the eigenvalue 0, which columns do not have; {why}"
        return self._lanczos(block, k, why, shown)

    def _lanczos(self, block: Block, k: int, why: str, shown: Bar) -> TopEigenvalues:
        fewest = min(2 * k + 6, block.size)
        if block.held < fewest:
            raise ValueError(
                f"max_memory must hold {fewest} vectors of the matrix for k={k}, {fewest * block.size * block.dtype.itemsize} "
                f"bytes, got {self.matrix.max_memory}"
            )
        before = self.matrix.n_products
        found = eigenpairs(
            block.times,
            block.normals(self.seed),
            k,
            end=self.largest,
            rtol=self.rtol,
            most_held=max(fewest, min(block.held, 24 + 4 * k)),
            most_products=self.max_products,
            eps=self.matrix.eps,
            each=shown.update,
        )
        if found.is_rounded:
            warn_user(
                f"top_eigenvalues cannot find values to rtol={self.rtol:g} in {self.matrix.dtype}, where rounding leaves an "
                f"error of {float(found.errors.max()):.2g}; see errors, or measure a copy of the model in float64",
                UserWarning,
            )
        return self._result(
            found.values,
            found.residuals,
            found.errors,
            block.spread(found.vectors) if self.vectors else None,
            "lanczos",
            why,
            n_products=self.matrix.n_products - before,
            converged=found.converged,
        )

    def _of_gram(self, gram: GramMatrix, block: Block, k: int, why: str) -> TopEigenvalues | None:
        """Returns the Gram matrix's eigenvalues; None where vectors of the value 0 are asked for, which it lacks."""
        before = self.matrix.n_products
        if not self.vectors:
            every = gram.eigenvalues(block.size)
            values = torch.cat([every, every.new_zeros(max(0, k - len(every)))])[:k]
            bound = torch.full((k,), gram.rounding, dtype=torch.float64)
            return self._result(values.cpu(), bound, bound, None, "gram", why)
        values, coordinates = gram.eigenpairs(k)
        if len(values) < k:
            return None
        rows = [self.matrix.flattened(x) for x in gram.eigenvectors(coordinates, values)]
        vectors = torch.stack(rows, dim=1)
        # The vectors' own errors show in their products.
        off = []
        for vector, value in zip(map(block.pick, vectors.t()), values.tolist(), strict=True):
            off.append(float((block.times(vector) - value * vector).norm()) + gram.rounding)
        return self._result(
            values.cpu(),
            torch.tensor(off, dtype=torch.float64),
            torch.full((k,), gram.rounding, dtype=torch.float64),
            vectors,
            "gram",
            why,
            n_products=self.matrix.n_products - before,
        )

    def _result(
        self,
        values: Tensor,
        residuals: Tensor,
        errors: Tensor,
        vectors: Tensor | None,
        method: str,
        why: str,
        *,
        n_products: int = 0,
        converged: bool = True,
    ) -> TopEigenvalues:
        return TopEigenvalues(
            values=values,
            residuals=residuals,
            errors=errors,
            vectors=vectors,
            n_products=n_products,
            method=method,
            kind=self.matrix.kind,
            seed=self.seed,
            why=why,
            converged=converged,
        )

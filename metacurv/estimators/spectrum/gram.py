"""The Gauss-Newton matrix's spectrum from the Gram matrix of the loss's factor: exact, without a vector of parameter size.

G = S S' with the columns s of ``exact``, each a gradient. The non-zero eigenvalues of G are those of K = S' S, which has a row
for each column; an eigenvector w of K gives that of G as S w / sqrt(lambda), by one backward pass of the columns' combination.

Source: Dangel, Tatzel, Hennig 2022, "ViViT: curvature access through the generalized Gauss-Newton's low-rank structure",
section 2.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from metacurv.estimators.activation.column_gradients import PartGradients
from metacurv.estimators.activation.space import ActivationSpace
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.select.methods import METHODS

_ROUNDING = (
    4.0  # units in the last place of the trace, which the largest eigenvalue is a good part of
)


def why_no_columns(batch: MeasuredBatch) -> str | None:
    """Returns what speaks against a symmetric factor of the batch's matrix; None where it may have one."""
    if batch.kind == "hessian":
        return "the Hessian has no such factor (where a network is linear in pieces, its diagonal is the GGN's, and no more)"
    return METHODS["exact"].why_not(batch)


class NoGram(Exception):
    """Raised where columns that were pulled make no Gram matrix; the message is the reason."""


@dataclass
class Columns:
    """All columns of a batch: ``u`` [R, *boundary], and the gradients that they give each part."""

    batch: MeasuredBatch
    space: ActivationSpace
    u: Tensor
    parts: dict[tuple[int, ...], PartGradients]
    rows: int

    def norms(self, parameters: Collection[int]) -> Tensor:
        """Returns the squared norm of each column's gradient in some parameters, [rows]."""
        total = self.u.new_zeros(self.rows)
        for owners, part in self.parts.items():
            if not set(parameters).isdisjoint(owners):
                total += part.norms(parameters)
        return total


class GramMatrix:
    """The Gram matrix of all columns of some batches, or of the parts of some parameters in them.

    Columns that are 0 up to rounding are left out.

    Args:
        columns: all columns of each batch, of which all have the same parts.
        parameters: the indices of the parameters that count; None for all of them.
        eps: the spacing of the numbers that columns are made of, relative.

    Attributes:
        rounding: the error that rounding in columns and products leaves in an eigenvalue, as far as can be told.
        trace: the sum of all eigenvalues.
        rank: the number of columns, which the number of eigenvalues that are not 0 cannot exceed.
        matrix: the matrix, float64 [kept, kept].
    """

    def __init__(
        self, columns: Sequence[Columns], parameters: Collection[int] | None, eps: float
    ) -> None:
        self._columns, self._eps = columns, eps
        everything = range(len(columns[0].space.parameters))
        self._parameters = set(everything if parameters is None else parameters)
        with torch.no_grad():
            norms = torch.cat([one.norms(self._parameters).double() for one in columns])
            self.trace, self.rank = float(norms.sum()), len(norms)
            self.rounding = _ROUNDING * eps * self.trace
            # By Weyl's inequality no eigenvalue moves by more than the sum of squared norms that are left out.
            rising, order = norms.sort()
            left_out = int(torch.searchsorted(rising.cumsum(0), eps * self.trace))
            is_kept = torch.ones_like(norms, dtype=torch.bool)
            is_kept[order[:left_out]] = False
            self._kept = is_kept.nonzero().flatten()
            pieces = torch.split(is_kept, [one.rows for one in columns])
            self._rows = [piece.nonzero().flatten() for piece in pieces]
            self.matrix = self._products()

    def of(self, parameters: Collection[int]) -> GramMatrix:
        """Returns the Gram matrix of some parameters, from the same columns."""
        return GramMatrix(self._columns, parameters, self._eps)

    def _products(self) -> Tensor:
        counts = [len(rows) for rows in self._rows]
        total = self._columns[0].u.new_zeros(sum(counts), sum(counts))
        ends = itertools.accumulate(counts)
        places = [slice(end - n, end) for n, end in zip(counts, ends, strict=True)]
        known = list(zip(self._columns, self._rows, places, strict=True))
        for i, (columns, rows, at) in enumerate(known):
            for others, other_rows, other_at in known[: i + 1]:
                for owners, part in columns.parts.items():
                    if not self._parameters.isdisjoint(owners):
                        other = others.parts[owners]
                        part.add_gram(
                            total[at, other_at], rows, other, other_rows, self._parameters
                        )
                if at != other_at:
                    total[other_at, at] = total[at, other_at].t()
        return total.double()

    def eigenvalues(self, size: int) -> Tensor:
        """Returns the eigenvalues above rounding, at most ``size`` of them, float64, the largest first."""
        found = torch.linalg.eigvalsh(self.matrix).flip(0)[:size]
        above: Tensor = found[found > self.rounding]
        return above

    def eigenpairs(self, k: int) -> tuple[Tensor, Tensor]:
        """Returns at most the ``k`` largest eigenvalues above rounding, and their eigenvectors, float64 [kept, k]."""
        values, vectors = torch.linalg.eigh(self.matrix)
        values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
        is_there = values > self.rounding
        return values[is_there], vectors[:, is_there]

    def eigenvectors(self, vectors: Tensor, values: Tensor) -> Iterator[list[Tensor | None]]:
        """Yields eigenvectors of the Gauss-Newton matrix or the block, split by all parameters.

        Args:
            vectors: eigenvectors of ``matrix``, float64 [kept, k].
            values: their eigenvalues, > 0, float64 [k].
        """
        rows = [columns.rows for columns in self._columns]
        every = vectors.new_zeros(sum(rows), vectors.shape[1])
        every[self._kept] = vectors / values.sqrt()
        for weights in every.t():
            total: list[Tensor | None] = []
            for columns, part in zip(self._columns, torch.split(weights, rows), strict=True):
                found = columns.batch.quietly(partial(_combined, columns, part))
                total = [_sum(x, y) for x, y in zip(total, found, strict=True)] if total else found
            yield [x if index in self._parameters else None for index, x in enumerate(total)]


def pull_columns(batches: Sequence[tuple[float, MeasuredBatch]]) -> list[Columns]:
    """Pulls all columns of all batches.

    Args:
        batches: the batches, each with its share of the mean over batches, > 0.

    Raises:
        NoGram: the factor of a batch is not symmetric, or batches have different graphs.
    """
    found = [_pulled(batch, share) for share, batch in batches]
    # Inner products are between rows of one part, so batches must have the same ones.
    kinds = [{owners: type(part) for owners, part in one.parts.items()} for one in found]
    if any(kind != kinds[0] for kind in kinds):
        raise NoGram("batches have different graphs")
    return found


def _pulled(batch: MeasuredBatch, share: float) -> Columns:
    def pulled() -> Columns:
        space = batch.general_space(for_columns=True)
        if not space.factor.is_definite:
            raise NoGram("the loss's second derivative in the output has no symmetric factor")
        u, _ = space.factor.columns(0, space.column_count)
        u = u * math.sqrt(share)
        parts = {part.parameters: part for part in space.gradients(u)}
        rows = space.column_count * space.examples
        return Columns(batch, space, u, parts, rows)

    return batch.quietly(pulled)


def _combined(columns: Columns, weights: Tensor) -> list[Tensor | None]:
    """Returns the gradients that the columns, each times its weight, give each parameter."""
    count = columns.space.column_count
    each = weights.view(count, columns.space.examples).to(columns.u)
    # The examples lie along the first axis of the boundary, in blocks of equal size.
    u = columns.u.reshape(count, columns.space.examples, -1)
    cotangent = (u * each.unsqueeze(2)).sum(0).view(columns.u.shape[1:])
    return list(columns.space.pull_back(cotangent))


def _sum(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return x + y if x is not None and y is not None else (y if x is None else x)

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


def why_no_columns(batch: MeasuredBatch) -> str | None:
    """Returns what speaks against a symmetric factor of the batch's matrix; None where it may have one."""
    if batch.kind == "hessian":
        return "the Hessian has no such factor (where a network is linear in pieces, its diagonal is the GGN's, and no more)"
    return METHODS["exact"].why_not(batch)


_ROUNDING = (
    4.0  # units in the last place of the trace, which the largest eigenvalue is a good part of
)


class NoGram(Exception):
    """Raised where columns that were pulled make no Gram matrix; the message is the reason."""


@dataclass
class _Columns:
    """All columns of a batch: ``u`` [R, *boundary], and the gradients that they give each part."""

    batch: MeasuredBatch
    space: ActivationSpace
    u: Tensor
    parts: dict[tuple[int, ...], PartGradients]
    rows: int

    def norms(self) -> Tensor:
        """Returns the squared norm of each column's gradient, [rows]."""
        return sum(
            (part.norms() for part in self.parts.values()), start=self.u.new_zeros(self.rows)
        )


class GramMatrix:
    """The Gram matrix of all columns of some batches, without those that are 0 up to rounding.

    Args:
        batches: the batches, each with its share of the mean over batches, > 0.

    Attributes:
        rounding: the error that rounding leaves in an eigenvalue, as far as can be told.

    Raises:
        NoGram: the factor of a batch is not symmetric, or batches have different graphs.
    """

    def __init__(self, batches: Sequence[tuple[float, MeasuredBatch]]) -> None:
        self._columns = [_pulled(batch, share) for share, batch in batches]
        _check_alike(self._columns)
        with torch.no_grad():
            norms = torch.cat([columns.norms().double() for columns in self._columns])
        eps = torch.finfo(self._columns[0].u.dtype).eps
        trace = float(norms.sum())
        self.rounding = _ROUNDING * eps * trace
        # By Weyl's inequality no eigenvalue moves by more than the sum of squared norms that are left out.
        rising, order = norms.sort()
        left_out = int(torch.searchsorted(rising.cumsum(0), eps * trace))
        is_kept = torch.ones_like(norms, dtype=torch.bool)
        is_kept[order[:left_out]] = False
        self._kept = is_kept.nonzero().flatten()
        pieces = torch.split(is_kept, [columns.rows for columns in self._columns])
        self._rows = [piece.nonzero().flatten() for piece in pieces]
        self._whole = self._of(range(len(self._columns[0].space.parameters)))

    def matrix(self, parameters: Collection[int] | None = None) -> Tensor:
        """Returns the Gram matrix, float64 [columns, columns], or its part by the parameters of these indices."""
        return self._whole if parameters is None else self._of(parameters)

    @torch.no_grad()
    def _of(self, parameters: Collection[int]) -> Tensor:
        counts = [len(rows) for rows in self._rows]
        total = self._columns[0].u.new_zeros(sum(counts), sum(counts))
        places = [
            slice(end - n, end) for n, end in zip(counts, itertools.accumulate(counts), strict=True)
        ]
        known = list(zip(self._columns, self._rows, places, strict=True))
        for i, (columns, rows, at) in enumerate(known):
            for others, other_rows, other_at in known[: i + 1]:
                for owners, part in columns.parts.items():
                    if not set(parameters).isdisjoint(owners):
                        other = others.parts[owners]
                        part.add_gram(total[at, other_at], rows, other, other_rows, parameters)
                if at != other_at:
                    total[other_at, at] = total[at, other_at].t()
        return total.double()

    def eigenvalues(self, size: int, parameters: Collection[int] | None = None) -> Tensor:
        """Returns the eigenvalues above rounding, at most ``size`` of them, float64, the largest first."""
        found = torch.linalg.eigvalsh(self.matrix(parameters)).flip(0)[:size]
        above: Tensor = found[found > self.rounding]
        return above

    def eigenpairs(
        self, k: int, parameters: Collection[int] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns at most the ``k`` largest eigenvalues above rounding, and their eigenvectors, float64 [columns, k]."""
        values, vectors = torch.linalg.eigh(self.matrix(parameters))
        values, vectors = values.flip(0)[:k], vectors.flip(1)[:, :k]
        is_there = values > self.rounding
        return values[is_there], vectors[:, is_there]

    def eigenvectors(
        self, vectors: Tensor, values: Tensor, parameters: Collection[int] | None = None
    ) -> Iterator[list[Tensor | None]]:
        """Yields eigenvectors of the Gauss-Newton matrix or a block of it, of length 1, split by parameters.

        Args:
            vectors: eigenvectors of ``matrix(parameters)``, float64 [columns, k].
            values: their eigenvalues, > 0, float64 [k].
            parameters: the indices of the block's parameters; None for all of them.
        """
        every = vectors.new_zeros(sum(c.rows for c in self._columns), vectors.shape[1])
        every[self._kept] = vectors / values.sqrt()
        for weights in every.t():
            total: list[Tensor | None] = []
            for columns, part in zip(
                self._columns, weights.split([c.rows for c in self._columns]), strict=True
            ):
                found = columns.batch.quietly(partial(_combined, columns, part))
                total = [_sum(x, y) for x, y in zip(total, found, strict=True)] if total else found
            yield [
                x if parameters is None or index in parameters else None
                for index, x in enumerate(total)
            ]


def _pulled(batch: MeasuredBatch, share: float) -> _Columns:
    def pulled() -> _Columns:
        space = batch.general_space(for_columns=True)
        if not space.factor.is_definite:
            raise NoGram("the loss's second derivative in the output has no symmetric factor")
        u, _ = space.factor.columns(0, space.column_count)
        u = u * math.sqrt(share)
        parts = {part.parameters: part for part in space.gradients(u)}
        rows = space.column_count * space.examples
        return _Columns(batch, space, u, parts, rows)

    return batch.quietly(pulled)


def _check_alike(all_columns: Sequence[_Columns]) -> None:
    """Raises NoGram unless all batches have the same parts, of the same kinds: inner products are between rows of one part."""
    kinds = [
        {owners: type(part) for owners, part in columns.parts.items()} for columns in all_columns
    ]
    if any(kind != kinds[0] for kind in kinds):
        raise NoGram("batches have different graphs")


def _combined(columns: _Columns, weights: Tensor) -> list[Tensor | None]:
    """Returns the gradients that the columns, each times its weight, give each parameter."""
    count = columns.space.column_count
    each = weights.view(count, columns.space.examples).to(columns.u)
    # The examples lie along the first axis of the boundary, in blocks of equal size.
    u = columns.u.reshape(count, columns.space.examples, -1)
    cotangent = (u * each.unsqueeze(2)).sum(0).view(columns.u.shape[1:])
    return list(columns.space.pull_back(cotangent))


def _sum(x: Tensor | None, y: Tensor | None) -> Tensor | None:
    return x + y if x is not None and y is not None else (y if x is None else x)

"""Decides whether an matrix's matrix has a Gram matrix of a size that one computes, and makes it."""

from __future__ import annotations

from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.spectrum.gram import GramMatrix, NoGram, why_no_columns
from metacurv.estimators.spectrum.matrix import Matrix

MOST_COLUMNS = 5000


def gram_or_reason(matrix: Matrix, most: int = MOST_COLUMNS) -> GramMatrix | str:
    """Returns the Gram matrix of all batches' columns, or the reason why there is none.

    ``most``: the largest number of columns that are worth it.
    """
    if matrix.is_over_ranks:
        return "the columns of several ranks are in no one place"
    batches: list[tuple[int, MeasuredBatch]] = []
    columns = 0
    for size, batch in matrix.batches():
        against = why_no_columns(batch)
        if against is not None:
            return against
        columns += batch.all_columns
        if not batch.all_columns:
            return "the loss's factor has no columns, as with a single class"
        if columns > most:
            return f"more than {most} columns of the loss's factor"
        if batch.column_bytes > matrix.max_memory:
            return "the columns' cotangents do not fit into max_memory"
        batches.append((size, batch))
    if not batches:
        raise ValueError("inputs must give at least one batch, got none")
    total = sum(size for size, _ in batches)
    shares = [1.0 if matrix.is_sum else size / total for size, _ in batches]
    try:
        return GramMatrix(
            [(share, batch) for share, (_, batch) in zip(shares, batches, strict=True)]
        )
    except NoGram as reason:
        return str(reason)


def choose_gram(
    matrix: Matrix, method: str, most: int = MOST_COLUMNS
) -> tuple[GramMatrix | None, str]:
    """Returns the Gram matrix where that is the way to take, and the reason.

    Args:
        matrix: the matrix.
        method: "auto", "gram" or "lanczos".
        most: the largest number of columns that "auto" takes.

    Raises:
        ValueError: "gram" was asked for and does not serve.
    """
    if method == "lanczos":
        return None, "asked for by name"
    found = gram_or_reason(matrix, MOST_COLUMNS if method == "gram" else most)
    if isinstance(found, str):
        if method == "gram":
            raise ValueError(
                f"method='gram' is not right for this model and kind={matrix.kind!r}: {found}; use method='auto'"
            )
        return None, f"lanczos: serves any loss; not gram: {found}"
    how = f"{len(found.matrix())} columns of the loss's factor, a backward pass to the layers each"
    return found, "asked for by name" if method == "gram" else f"gram: {how}"

"""Decides whether a matrix has a Gram matrix of a size that one computes, and makes it."""

from __future__ import annotations

from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.spectrum.gram import GramMatrix, NoGram, pull_columns, why_no_columns
from metacurv.estimators.spectrum.matrix import Matrix

MOST_COLUMNS = 5000
# Elements of the gradients that are formed, of all columns: more take longer than products with the matrix would.
_FORMED = 1 << 26


def gram_or_reason(matrix: Matrix, most: int, most_formed: float) -> GramMatrix | str:
    """Returns the Gram matrix of all batches' columns, or the reason why there is none.

    Args:
        matrix: the Gauss-Newton matrix.
        most: the largest number of columns.
        most_formed: the largest number of elements of gradients that are formed.

    Raises:
        ValueError: there are no batches.
    """
    if matrix.is_over_ranks:
        return "the columns of several ranks are in no one place"
    batches: list[tuple[int, MeasuredBatch]] = []
    columns, size, formed = 0, 0, 0
    for examples, batch in matrix.batches():
        against = why_no_columns(batch)
        if against is not None:
            return against
        count = batch.all_columns
        if not count:
            return "the loss's factor has no columns, as with a single class"
        columns, size = columns + count, size + batch.column_bytes
        formed += count * batch.formed_elements
        if columns > most:
            return f"more than {most} columns of the loss's factor"
        one_at_a_time = 8 * batch.apart * batch.formed_elements
        if max(size + 12 * columns**2, one_at_a_time) > matrix.max_memory:
            return "the columns do not fit into max_memory"
        if formed > most_formed:
            return "the columns' gradients take longer than products with the matrix"
        batches.append((examples, batch))
    if not batches:
        raise ValueError("inputs must give at least one batch, got none")
    total = sum(examples for examples, _ in batches)
    shares = [1.0 if matrix.is_sum else examples / total for examples, _ in batches]
    pairs = zip(shares, (batch for _, batch in batches), strict=True)
    try:
        return GramMatrix(pull_columns(list(pairs)), None, matrix.eps)
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
    is_asked_for = method == "gram"
    found = gram_or_reason(
        matrix,
        MOST_COLUMNS if is_asked_for else most,
        float("inf") if is_asked_for else _FORMED,
    )
    if isinstance(found, str):
        if is_asked_for:
            raise ValueError(
                f"method='gram' is not right for this model and kind={matrix.kind!r}: {found}; use method='auto'"
            )
        return None, f"lanczos: serves any loss; not gram: {found}"
    how = f"{found.rank} columns of the loss's factor, a backward pass to the layers for those of all examples"
    return found, "asked for by name" if is_asked_for else f"gram: {how}"

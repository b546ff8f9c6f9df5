"""The choice of a method for ``method="auto"``, with the reasons for it."""

from __future__ import annotations

from metacurv.estimators.problem.errors import NotTwiceDifferentiableError, without_advice
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.select.methods import (
    ACTIVATION,
    EXACT,
    FINITE_DIFFERENCES,
    HUTCHINSON,
    METHODS,
)
from metacurv.estimators.statistics.stopping import Budget, Groups, Summary

# A column costs a backward pass to the layers, as a sample does. Up to twice as many columns as samples would be drawn anyway,
# and always this many, are well spent on a result without error.
_FEW_COLUMNS = 32


def worth_columns(columns: int, n_samples: int) -> bool:
    """Tells whether the exact trace, from so many columns, is to be preferred to ``n_samples`` samples."""
    return columns <= max(_FEW_COLUMNS, 2 * n_samples)


def choose_and_measure(
    batch: MeasuredBatch, groups: Groups, budget: Budget
) -> tuple[str, str, Summary]:
    """Measures with the cheapest method that is right here; returns its name, the reason for it, and the result."""
    against = EXACT.why_not(batch)
    if against is None:
        if worth_columns(EXACT.cost(batch), budget.first):
            return "exact", f"exact: {_columns(batch)}", EXACT.measure(batch, groups, budget)
        reason = f"exact would take {_columns(batch)}"
    else:
        reason = f"not exact: {against}"
    against = ACTIVATION.why_not(batch)
    if against is None:
        why = f"activation: one backward pass to the layers a sample; {reason}"
        return "activation", why, ACTIVATION.measure(batch, groups, budget)
    reasons = [f"neither exact nor activation: {against}"]
    against = HUTCHINSON.why_not(batch)
    if against is not None:
        raise ValueError(f"kind={batch.kind!r} cannot be measured here: {against}; {reasons[0]}")
    serves = "loss" if batch.kind == "hessian" else "model"
    try:
        summary = HUTCHINSON.measure(batch, groups, budget)
    except NotTwiceDifferentiableError as error:
        if batch.kind == "ggn":
            raise
        if (seen := FINITE_DIFFERENCES.kinks(batch)) is not None:
            message = f"{without_advice(error)}; and {seen}"
            raise NotTwiceDifferentiableError(message) from error
        reasons.append(f"not hutchinson: {without_advice(error)}")
        why = "; ".join(["finite_difference: needs gradients only", *reasons])
        return "finite_difference", why, FINITE_DIFFERENCES.measure(batch, groups, budget)
    why = "; ".join([f"hutchinson: serves any {serves}", *reasons, *_checked(batch)])
    return "hutchinson", why, summary


def measure_by_name(
    name: str, batch: MeasuredBatch, groups: Groups, budget: Budget
) -> tuple[str, str, Summary]:
    """Measures with the method that the user named; returns what ``choose_and_measure`` does.

    Raises:
        ValueError: it is not right for this model.
    """
    method = METHODS[name]
    against = method.why_not(batch)
    if against is None and method is FINITE_DIFFERENCES:
        against = FINITE_DIFFERENCES.kinks(batch)
    if against is not None:
        raise ValueError(
            f"method={name!r} is not right for this model and kind={batch.kind!r}: {against}; "
            "use method='auto' for the cheapest that is"
        )
    summary = method.measure(batch, groups, budget)
    checked = _checked(batch) if method is HUTCHINSON else []
    return name, "; ".join(["asked for by name", *checked]), summary


def _checked(batch: MeasuredBatch) -> list[str]:
    """Says which custom functions had to be checked, where there are some."""
    names = batch.custom_functions
    return [f"the backward passes of custom functions were checked: {names}"] if names else []


def _columns(batch: MeasuredBatch) -> str:
    of_loss, of_activations = batch.columns
    plural = "s" if of_loss != 1 else ""
    more = f" and {of_activations} for smooth activations" if of_activations else ""
    return f"{of_loss} column{plural} of the loss's factor{more}, a backward pass each"

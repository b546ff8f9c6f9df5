"""The choice of a method for ``method="auto"``, with the reasons for it."""

from __future__ import annotations

from metacurv.estimators.problem.errors import NotTwiceDifferentiableError, without_advice
from metacurv.estimators.select.measured_batch import Opened
from metacurv.estimators.select.methods import kinks, measure, why_not
from metacurv.estimators.statistics.stopping import Budget, Groups, Summary

# A column costs a backward pass to the layers, as a sample does. Up to twice as many columns as samples would be drawn anyway,
# and always this many, are well spent on a result without error.
_FEW_COLUMNS = 32


def worth_columns(columns: int, n_samples: int) -> bool:
    """Tells whether the exact trace, from so many columns, is to be preferred to ``n_samples`` samples."""
    return columns <= max(_FEW_COLUMNS, 2 * n_samples)


def choose_and_measure(opened: Opened, groups: Groups, budget: Budget) -> tuple[str, str, Summary]:
    """Measures with the cheapest method that is right here; returns its name, the reason for it, and the result."""
    reasons: list[str] = []
    against = why_not("exact", opened)
    if against is None:
        count = _count(*opened.columns)
        if worth_columns(sum(opened.columns), budget.first):
            return "exact", f"exact: {count}", measure("exact", opened, groups, budget)
        reasons.append(f"exact would take {count}")
    else:
        reasons.append(f"not exact: {against}")
    against = why_not("activation", opened)
    if against is None:
        why = "; ".join(["activation: one backward pass to the layers a sample", *reasons])
        return "activation", why, measure("activation", opened, groups, budget)
    reasons = [f"neither exact nor activation: {against}"]
    if opened.kind == "ggn":
        against = why_not("hutchinson", opened)
        if against is not None:
            raise ValueError(f"kind='ggn' cannot be measured here: {against}; {'; '.join(reasons)}")
        why = "; ".join(["hutchinson: serves any model", *reasons, *_checked(opened)])
        return "hutchinson", why, measure("hutchinson", opened, groups, budget)
    try:
        summary = measure("hutchinson", opened, groups, budget)
    except NotTwiceDifferentiableError as error:
        if (seen := kinks(opened)) is not None:
            message = f"{without_advice(error)}; and {seen}"
            raise NotTwiceDifferentiableError(message) from error
        reasons.append(f"not hutchinson: {without_advice(error)}")
        why = "; ".join(["finite_difference: needs gradients only", *reasons])
        return "finite_difference", why, measure("finite_difference", opened, groups, budget)
    why = "; ".join(["hutchinson: serves any loss", *reasons, *_checked(opened)])
    return "hutchinson", why, summary


def measure_by_name(
    method: str, opened: Opened, groups: Groups, budget: Budget
) -> tuple[str, str, Summary]:
    """Measures with the method that the user named; returns what ``choose_and_measure`` does.

    Raises:
        ValueError: it is not right for this model.
    """
    against = why_not(method, opened)
    if against is None and method == "finite_difference":
        against = kinks(opened)
    if against is not None:
        raise ValueError(
            f"method={method!r} is not right for this model and kind={opened.kind!r}: {against}; "
            "use method='auto' for the cheapest that is"
        )
    summary = measure(method, opened, groups, budget)
    checked = _checked(opened) if method == "hutchinson" else []
    return method, "; ".join(["asked for by name", *checked]), summary


def _checked(opened: Opened) -> list[str]:
    """Says which custom functions had to be checked, where there are some."""
    names = opened.custom_functions
    return [f"the backward passes of custom functions were checked: {names}"] if names else []


def _count(of_loss: int, of_activations: int) -> str:
    plural = "s" if of_loss != 1 else ""
    more = f" and {of_activations} for smooth activations" if of_activations else ""
    return f"{of_loss} column{plural} of the loss's factor{more}, a backward pass each"

"""What every method of ``estimate_trace`` owes a case: to serve it, or to say that it cannot."""

from __future__ import annotations

from enum import Enum

from metacurv import TraceEstimate
from tests.estimators.dense.case import Case
from tests.estimators.dense.checks import measure
from tests.estimators.dense.truth import KINDS

METHODS = ("exact", "activation", "split", "hutchinson", "finite_difference")


class Service(Enum):
    MUST = "right"
    MAY = "right or refused"
    NEVER = "refused"


def service(case: Case, method: str, kind: str) -> Service:
    """Of ``method`` for the trace of ``kind``."""
    assert kind in KINDS
    if method == "hutchinson":
        return Service.MUST
    if method == "finite_difference":
        return Service.MUST if kind == "hessian" else Service.NEVER
    if method == "split":  # tests/estimators/split says what it must serve
        return Service.MAY if kind == "hessian" else Service.NEVER
    in_reach = case.piecewise_linear if method == "exact" else case.activation_hessian
    if kind == "hessian" and not in_reach:
        # Of smooth activations the plainest stacks alone are exact: tests/estimators/mlp/test_chain.py says which.
        may_serve = case.may_serve or case.activation_hessian
        return Service.MAY if may_serve else Service.NEVER
    if case.samples_interact or case.loss_couples_samples:
        return Service.MAY
    return Service.MAY if kind == "hessian" and case.may_refuse else Service.MUST


def served(case: Case, method: str, kind: str, **options: int) -> TraceEstimate | None:
    """The estimate, or None where an honest refusal is as good."""
    try:
        estimate = measure(case, method=method, kind=kind, **options)
    except ValueError as refusal:
        if service(case, method, kind) is Service.MUST or "method" not in str(refusal):
            raise
        return None
    assert (estimate.method, estimate.kind) == (method, kind)
    return estimate

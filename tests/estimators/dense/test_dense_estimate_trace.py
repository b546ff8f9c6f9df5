"""estimate_trace against dense Hessians and GGNs in float64: every network and loss of the tables, by every method.

A method that does not serve a case must say so; one that may serve it must be right or say so (``methods.py``).
"""

from __future__ import annotations

import pytest

from tests.estimators.dense.case import build
from tests.estimators.dense.checks import (
    assert_exact,
    assert_probes,
    assert_within_errors,
    measure,
)
from tests.estimators.dense.methods import METHODS, Service, served, service
from tests.estimators.dense.table import TABLE, marks_of, truth_of
from tests.estimators.dense.truth import KINDS

# To autograd a padding row has no derivative; differences move it, so that single samples are others.
PADDED = "embedding_padding_idx"


FLAGS = {name: build(make) for name, make in TABLE.items()}


def rows(method: str) -> pytest.MarkDecorator:
    """Every kind and case that ``method`` must or may serve."""
    return pytest.mark.parametrize(
        ("kind", "name"),
        [
            pytest.param(kind, name, id=f"{kind}-{name}", marks=marks_of(name))
            for kind in KINDS
            for name, case in FLAGS.items()
            if service(case, method, kind) is not Service.NEVER
        ],
    )


@rows("exact")
def test_exact(kind, name):
    estimate = served(build(TABLE[name]), "exact", kind)
    if estimate is not None:
        assert_exact(estimate, truth_of(name))


@rows("activation")
def test_activation(kind, name):
    estimate = served(build(TABLE[name]), "activation", kind, n_samples=100, seed=1)
    if estimate is not None:
        assert_within_errors(estimate, truth_of(name))


@rows("split")
def test_split(kind, name):
    truth = truth_of(name)
    estimate = served(build(TABLE[name]), "split", kind, n_samples=100, seed=4)
    if estimate is not None:
        # Without a diagonal there is nothing to be a share of; what is off it makes the noise.
        has_none = abs(truth.matrices[kind].diagonal()).sum() <= 1e-9
        assert_within_errors(estimate, truth, None if has_none else 0.3)


@rows("hutchinson")
def test_hutchinson_probe_by_probe(kind, name):
    case = build(TABLE[name])
    estimate = served(case, "hutchinson", kind, n_samples=3, seed=5)
    assert_probes(estimate, case, truth_of(name), 1e-10)


@rows("finite_difference")
def test_finite_difference_probe_by_probe(kind, name):
    case = build(TABLE[name])
    if name == PADDED:
        estimate = served(case, "finite_difference", kind, n_samples=100, seed=5)
        assert_within_errors(estimate, truth_of(name))
    else:
        estimate = served(case, "finite_difference", kind, n_samples=3, seed=5)
        assert_probes(estimate, case, truth_of(name), 1e-6)


@pytest.mark.parametrize(
    ("method", "kind", "name"),
    [
        pytest.param(method, kind, name, id=f"{method}-{kind}-{name}", marks=marks_of(name))
        for method in METHODS
        for kind in KINDS
        for name, case in FLAGS.items()
        if service(case, method, kind) is Service.NEVER
    ],
)
def test_refused(method, kind, name):
    """With a reason, never with the GGN's number, nor any other."""
    with pytest.raises(ValueError, match="method"):
        measure(build(TABLE[name]), method=method, kind=kind, n_samples=2)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in TABLE])
@pytest.mark.parametrize("kind", KINDS)
def test_auto(kind, name):
    case, truth = build(TABLE[name]), truth_of(name)
    estimate = measure(case, kind=kind, n_samples=50, seed=2)
    assert estimate.method in METHODS
    assert estimate.kind == kind
    assert estimate.why
    # What it chose must be something that serves; the truth below says the same again.
    assert service(case, estimate.method, kind) is not Service.NEVER
    if estimate.method == "exact":
        assert_exact(estimate, truth)
    else:
        assert_within_errors(estimate, truth)

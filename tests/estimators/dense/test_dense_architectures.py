"""estimate_trace on random small architectures, against their dense Hessians and GGNs."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.estimators.dense.architectures import architectures
from tests.estimators.dense.checks import assert_exact, assert_probes, assert_within_errors, measure
from tests.estimators.dense.methods import served
from tests.estimators.dense.truth import KINDS, dense_truth
from tests.helpers import property_test

# A dense truth is made for every example.
few = settings(property_test, max_examples=25)
kinds = st.sampled_from(KINDS)


@given(case=architectures(), kind=kinds)
@few
def test_exact(case, kind):
    estimate = served(case, "exact", kind)
    if estimate is not None:
        assert_exact(estimate, dense_truth(case))


@given(case=architectures(), kind=kinds, seed=st.integers(0, 9))
@few
def test_activation(case, kind, seed):
    estimate = measure(case, method="activation", kind=kind, n_samples=100, seed=seed)
    assert_within_errors(estimate, dense_truth(case))


@given(case=architectures(), kind=kinds, seed=st.integers(0, 9))
@few
def test_hutchinson(case, kind, seed):
    estimate = measure(case, method="hutchinson", kind=kind, n_samples=3, seed=seed)
    assert_probes(estimate, case, dense_truth(case), 1e-10)


@given(case=architectures(), kind=kinds)
@few
def test_auto(case, kind):
    estimate = measure(case, kind=kind, n_samples=100)
    if estimate.method == "exact":
        assert_exact(estimate, dense_truth(case))
    else:
        assert_within_errors(estimate, dense_truth(case))

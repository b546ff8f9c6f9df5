"""``directional_lr_``: by hand, and native against twin, whatever is read."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metacurv import ops
from tests.helpers import BACKENDS, needs_native, property_test

RULE = {"sigma": 2.0, "kappa": 0.1, "beta": 0.9}
each_backend = pytest.mark.parametrize("backend", BACKENDS)


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def state(*rates, loss=1.0, readings=0.0):
    """Rates, nothing averaged yet; the three losses; readings."""
    zeros = [0.0] * len(rates)
    scales = torch.tensor([rates, zeros, zeros, zeros], dtype=torch.float64)
    return scales, numbers(loss, loss, loss, readings, 1.0, 1.0)


@each_backend
def test_a_search_by_hand(backend):
    """k = 0: the averages are a tenth old. Rate 0.5, n 10, d 8: log(2 * 9 / (0.5 * 7.2)) = log 5, a tenth of it."""
    scales, shared = state(0.5, 4.0)
    reading = numbers(0.5, 10.0, 1.0, 8.0, 1.0)
    ops.directional_lr_(scales, shared, reading, searching=True, backend=backend, **RULE)
    # The second asks for log(2 * 0.9 / (4 * 0.9)) = -log 2, and is braked from now on.
    expected = [0.5 * 5**0.1, 4 * 2**-0.1]
    assert scales[0].tolist() == pytest.approx(expected, rel=1e-14)
    assert scales[1:].tolist() == [pytest.approx([9, 0.9]), pytest.approx([7.2, 0.9]), [0.0, 1.0]]
    # The loss's average keeps 0.7: 0.85.
    assert shared.tolist() == pytest.approx([1, 0.85, 0.85, 1, 0.1 * math.log(5), 1], rel=1e-14)


@each_backend
def test_growth_once_braked_and_at_most(backend):
    scales, shared = state(1.0, 1.0)
    scales[3, 1] = 1.0
    reading = numbers(1.0, 1e9, 1e9, 1.0, 1.0)
    ops.directional_lr_(scales, shared, reading, searching=True, backend=backend, **RULE)
    assert scales[0].tolist() == pytest.approx([math.exp(0.3), math.exp(0.05)], rel=1e-14)


@each_backend
def test_uphill_shrinks(backend):
    scales, shared = state(1.0)
    reading = numbers(1.0, -3.0, 1.0)
    ops.directional_lr_(scales, shared, reading, searching=True, backend=backend, **RULE)
    assert scales[0].item() == pytest.approx(math.exp(-0.1), rel=1e-14)
    assert scales[3].item() == 1.0


@each_backend
def test_what_was_not_stepped_stays_and_what_is_not_finite_moves_nothing(backend):
    scales, shared = state(1.0, 2.0)
    ops.directional_lr_(
        scales, shared, numbers(1.0, 0.0, 4.0, 0.0, 1.0), searching=True, backend=backend, **RULE
    )
    assert scales[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scales[0, 1] != 2.0
    before = scales.clone()
    for bad in (math.nan, math.inf, -math.inf):
        reading = numbers(1.0, 1.0, 1.0, bad, 1.0)
        ops.directional_lr_(scales, shared, reading, searching=True, backend=backend, **RULE)
        assert torch.equal(scales, before)
        assert shared[3:].tolist() == [1.0, 0.0, 0.0]


@each_backend
@pytest.mark.parametrize(
    ("loss", "halved"), [(0.39, False), (0.41, True), (math.nan, True), (math.inf, True)]
)
def test_a_loss_far_back_up_halves(backend, loss, halved):
    """From 1 down to 0.2: a quarter of that lost is 0.4."""
    scales, _ = state(1.0)
    shared = numbers(1.0, 0.2, 0.2, 5.0, 0.0, 1.0)
    reading = numbers(loss, 1.0, 1.0)
    ops.directional_lr_(scales, shared, reading, searching=False, backend=backend, **RULE)
    assert scales[0].item() == (0.5 if halved else 1.0)
    assert scales[3].item() == float(halved)
    if math.isfinite(loss):
        assert shared[1].item() == pytest.approx(0.7 * 0.2 + 0.3 * loss)


@each_backend
def test_decay_grows_up_to_beta(backend):
    for readings, decay in ((0.0, 0.1), (5.0, 0.4), (8.0, 0.5), (1e6, 0.9)):
        scales, shared = state(1.0, readings=readings)
        scales[1:3] = 1.0
        reading = numbers(1.0, 2.0, 3.0)
        ops.directional_lr_(scales, shared, reading, searching=True, backend=backend, **RULE)
        assert scales[1].item() == pytest.approx(2 - decay, rel=1e-14)
        assert scales[2].item() == pytest.approx(3 - 2 * decay, rel=1e-14)


def both(scales, shared, reading, searching, sigma=2.0, kappa=0.1, beta=0.97):
    """After native and twin; rates, averages and losses to a few units in the last place, flags and counts the same."""
    results = []
    for backend in ("native", "reference"):
        made = scales.clone(), shared.clone()
        ops.directional_lr_(
            *made,
            reading,
            sigma=sigma,
            kappa=kappa,
            beta=beta,
            searching=searching,
            backend=backend,
        )
        results.append(made)
    (native, native_shared), (twin, twin_shared) = results
    torch.testing.assert_close(native[:3], twin[:3], rtol=1e-14, atol=0, equal_nan=True)
    torch.testing.assert_close(native[3], twin[3], rtol=0, atol=0)
    torch.testing.assert_close(native_shared[:4], twin_shared[:4], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(native_shared[4:], twin_shared[4:], rtol=1e-9, atol=1e-14)
    return native


@each_backend
def test_numbers_at_the_end_of_float64_leave_a_rate(backend):
    scales, shared = state(4.0)
    reading = numbers(1.0, 1.7e308, 1.7e308)
    for _ in range(3):
        ops.directional_lr_(scales, shared, reading, searching=True, backend=backend, **RULE)
    assert scales[0].item() == pytest.approx(4 * math.exp(-0.3))


@needs_native
def test_native_is_the_twin():
    values = [0.0, -0.0, 1e-320, 1e-3, 1.0, 7.3, 1e300, -2.0, math.nan, math.inf]
    for slope, curvature, searching in itertools.product(values, values, (True, False)):
        scales = torch.tensor(
            [[1.0, 3e5], [0.5, -0.1], [2.0, 1e-9], [0.0, 1.0]], dtype=torch.float64
        )
        for loss in (0.3, 5.0, math.nan):
            shared = numbers(2.0, 0.5, 0.4, 3.0, 0.1, 1.0)
            both(scales, shared, numbers(loss, slope, 1.0, curvature, 2.0), searching)


reals = st.floats(allow_nan=False, allow_infinity=False)


@needs_native
@property_test
@given(
    rate=st.floats(2.0**-60, 2.0**60),
    averages=st.tuples(reals, reals),
    read=st.tuples(st.floats(), st.floats(), st.floats()),
    losses=st.tuples(reals, reals, reals),
    readings=st.integers(0, 10**9),
    searching=st.booleans(),
)
def test_of_anything(rate, averages, read, losses, readings, searching):
    scales = torch.tensor([[rate], [averages[0]], [averages[1]], [0.0]], dtype=torch.float64)
    shared = numbers(*losses, float(readings), 0.0, 1.0)
    after = both(scales, shared, numbers(*read), searching)
    assert 2.0**-60 <= after[0].item() <= 2.0**60

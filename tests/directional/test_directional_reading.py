"""What one reading does to the rates: by hand, and whatever is read."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from metacurv.rules.directional_reading import take_in_
from tests.helpers import property_test


def numbers(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def state(*rates: float, loss: float = 1.0, readings: float = 0.0) -> tuple[Tensor, Tensor]:
    """Rates, nothing averaged yet; the three losses; readings."""
    zeros = [0.0] * len(rates)
    scales = torch.tensor([rates, zeros, zeros, zeros], dtype=torch.float64)
    return scales, numbers(loss, loss, loss, readings, 1.0, 1.0)


def take_in(scales: Tensor, shared: Tensor, *reading: float, searching: bool = True) -> None:
    take_in_(scales, shared, numbers(*reading), sigma=2.0, kappa=0.1, beta=0.9, searching=searching)


def test_a_search_by_hand() -> None:
    """k = 0: the averages are a tenth old. Rate 0.5, n 10, d 8: log(2 * 9 / (0.5 * 7.2)) = log 5, a tenth of it."""
    scales, shared = state(0.5, 4.0)
    take_in(scales, shared, 0.5, 10.0, 1.0, 8.0, 1.0)
    # The second asks for log(2 * 0.9 / (4 * 0.9)) = -log 2, and is braked from now on.
    expected = [0.5 * 5**0.1, 4 * 2**-0.1]
    assert scales[0].tolist() == pytest.approx(expected, rel=1e-14)
    assert scales[1:].tolist() == [pytest.approx([9, 0.9]), pytest.approx([7.2, 0.9]), [0.0, 1.0]]
    # The loss's average keeps 0.7: 0.85.
    assert shared.tolist() == pytest.approx([1, 0.85, 0.85, 1, 0.1 * math.log(5), 1], rel=1e-14)


def test_growth_once_braked_and_at_most() -> None:
    scales, shared = state(1.0, 1.0)
    scales[3, 1] = 1.0
    take_in(scales, shared, 1.0, 1e9, 1e9, 1.0, 1.0)
    assert scales[0].tolist() == pytest.approx([math.exp(0.3), math.exp(0.05)], rel=1e-14)


def test_uphill_shrinks() -> None:
    scales, shared = state(1.0)
    take_in(scales, shared, 1.0, -3.0, 1.0)
    assert scales[0].item() == pytest.approx(math.exp(-0.1), rel=1e-14)
    assert scales[3].item() == 1.0


def test_at_the_rate_sought_it_stays_and_is_not_braked() -> None:
    """0.5 * 4 = 2 * 1."""
    scales, shared = state(0.5)
    take_in(scales, shared, 1.0, 1.0, 4.0)
    assert scales[:, 0].tolist() == pytest.approx([0.5, 0.9, 3.6, 0.0])


def test_what_was_not_stepped_stays_and_what_is_not_finite_moves_nothing() -> None:
    scales, shared = state(1.0, 2.0)
    take_in(scales, shared, 1.0, 0.0, 4.0, 0.0, 1.0)
    assert scales[:, 0].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert scales[0, 1] != 2.0
    before = scales.clone()
    for bad in (math.nan, math.inf, -math.inf):
        take_in(scales, shared, 1.0, 1.0, 1.0, bad, 1.0)
        assert torch.equal(scales, before)
        assert shared[3:].tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("loss", "halved"), [(0.39, False), (0.41, True), (math.nan, True), (math.inf, True)]
)
def test_a_loss_far_back_up_halves(loss: float, halved: bool) -> None:
    """From 1 down to 0.2: a quarter of that lost is 0.4."""
    scales, _ = state(1.0)
    shared = numbers(1.0, 0.2, 0.2, 5.0, 0.0, 1.0)
    take_in(scales, shared, loss, 1.0, 1.0, searching=False)
    assert scales[0].item() == (0.5 if halved else 1.0)
    assert scales[3].item() == float(halved)
    if math.isfinite(loss):
        assert shared[1].item() == pytest.approx(0.7 * 0.2 + 0.3 * loss)


def test_decay_grows_up_to_beta() -> None:
    for readings, decay in ((0.0, 0.1), (5.0, 0.4), (8.0, 0.5), (1e6, 0.9)):
        scales, shared = state(1.0, readings=readings)
        scales[1:3] = 1.0
        take_in(scales, shared, 1.0, 2.0, 3.0)
        assert scales[1].item() == pytest.approx(2 - decay, rel=1e-14)
        assert scales[2].item() == pytest.approx(3 - 2 * decay, rel=1e-14)


def test_numbers_at_the_end_of_float64_leave_a_rate() -> None:
    scales, shared = state(4.0)
    for _ in range(3):
        take_in(scales, shared, 1.0, 1.7e308, 1.7e308)
    assert scales[0].item() == pytest.approx(4 * math.exp(-0.3))


reals = st.floats(allow_nan=False, allow_infinity=False)


@property_test
@given(
    rate=st.floats(2.0**-60, 2.0**60),
    averages=st.tuples(reals, reals),
    read=st.tuples(st.floats(), st.floats(), st.floats()),
    losses=st.tuples(reals, reals, reals),
    readings=st.integers(0, 10**9),
    searching=st.booleans(),
)
def test_of_anything(
    rate: float,
    averages: tuple[float, float],
    read: tuple[float, float, float],
    losses: tuple[float, float, float],
    readings: int,
    searching: bool,
) -> None:
    scales = torch.tensor([[rate], [averages[0]], [averages[1]], [0.0]], dtype=torch.float64)
    shared = numbers(*losses, float(readings), 0.0, 1.0)
    take_in(scales, shared, *read, searching=searching)
    assert 2.0**-60 <= scales[0].item() <= 2.0**60

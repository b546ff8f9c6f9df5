"""Means, spreads and intervals against numbers worked by hand or printed in books."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from metacurv.experiment.statistics import paired_interval, spread

# Student's table (e.g. Fisher and Yates): the 97.5 % point of t.
T_975 = {1: 12.706, 4: 2.776, 9: 2.262, 19: 2.093}


def test_spread_by_hand() -> None:
    found = spread(np.array([2.0, 4.0, 9.0]))
    assert (found.mean, found.n) == (5.0, 3)
    assert found.sd == pytest.approx(math.sqrt((9 + 1 + 16) / 2))


def test_the_spread_of_one_value_is_unknown() -> None:
    found = spread(np.array([3.0]))
    assert found.mean == 3.0
    assert math.isnan(found.sd)


@pytest.mark.parametrize("degrees", T_975)
def test_interval_by_hand(degrees: int) -> None:
    """Differences 0 and 2 in equal numbers (1 once where odd): mean 1, deviations 1."""
    n = degrees + 1
    differences = np.array([0.0, 2.0] * (n // 2) + [1.0] * (n % 2))
    error = math.sqrt(2 * (n // 2) / (n - 1) / n)
    found = paired_interval(differences + 7, np.full(n, 7.0))
    assert found.mean == pytest.approx(1)
    assert found.high - 1 == pytest.approx(T_975[degrees] * error, rel=3e-4)
    assert 1 - found.low == pytest.approx(found.high - 1)


def test_interval_of_students_sleep_data() -> None:
    """Student (1908), extra sleep in hours under two drugs; R's t.test: 0.7001 to 2.4599."""
    first = np.array([0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0])
    second = np.array([1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4])
    found = paired_interval(second, first)
    assert found.mean == pytest.approx(1.58)
    assert (found.low, found.high) == pytest.approx((0.7001142, 2.4598858))
    assert found.side == 1
    assert paired_interval(first, second).side == -1


def test_interval_agrees_with_scipy() -> None:
    random = np.random.default_rng(0)
    values, baseline = random.normal(size=(2, 12))
    theirs = stats.ttest_rel(values, baseline).confidence_interval(0.95)
    found = paired_interval(values, baseline)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high))
    assert found.side == 0


def test_pairing_counts() -> None:
    """A constant difference has no spread, however much the seeds differ."""
    baseline = np.array([1.0, 100.0, 10000.0])
    found = paired_interval(baseline + 0.5, baseline)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    assert found.side == 1


@pytest.mark.parametrize("values", [[1.0], [1.0, math.nan, 2.0], [1.0, math.inf, 2.0]])
def test_what_bounds_nothing_has_no_limits(values: list[float]) -> None:
    found = paired_interval(np.array(values), np.zeros(len(values)))
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert found.side == 0


def test_no_difference_at_all_takes_no_side() -> None:
    same = np.array([1.0, 2.0, 3.0])
    assert paired_interval(same, same).side == 0

"""Learning-rate rules and smoothing, by numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from metacurv.optim.reciprocal.rule import BiasCorrectedEma, ReciprocalRule
from tests.helpers import BACKENDS, property_test

INF, NAN = float("inf"), float("nan")
SMALLEST = 2.0**-40


def float64(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


def scale_after(trace: float, *, alpha: float, before: float = 1.0, backend: str = "auto") -> float:
    scale = float64(before)
    ReciprocalRule(alpha, backend).update_(scale, float64(trace))
    return scale.item()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("alpha", "trace", "expected"),
    [
        (0.01, 100.0, 0.5),
        (0.01, 300.0, 0.25),
        (0.5, 2.0, 0.5),
        (1.0, 7.0, 0.125),
        (0.01, 7.0, 1 / 1.07),  # the trace before and after the seed's training
        (0.01, 338.0, 1 / 4.38),
        (0.1, 338.0, 1 / 34.8),
        (3.0, 0.0, 1.0),
        (0.0, 1e12, 1.0),
    ],
)
def test_reciprocal(backend, alpha, trace, expected):
    assert scale_after(trace, alpha=alpha, backend=backend) == pytest.approx(expected, rel=1e-15)


@pytest.mark.parametrize("backend", BACKENDS)
def test_each_reading_replaces_the_last(backend):
    """The scale is relative to the base rate; it does not compound."""
    scale, rule = float64(1.0), ReciprocalRule(0.01, backend)
    for trace, expected in ((100.0, 0.5), (100.0, 0.5), (0.0, 1.0), (300.0, 0.25)):
        rule.update_(scale, float64(trace))
        assert scale.item() == expected


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trace", [-1e-9, -5.0, -1e300])
def test_negative_curvature_leaves_the_base_rate(backend, trace):
    assert scale_after(trace, alpha=0.1, before=0.2, backend=backend) == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("trace", [NAN, INF, -INF])
def test_readings_that_are_not_finite_change_nothing(backend, trace):
    assert scale_after(trace, alpha=0.1, before=0.2, backend=backend) == 0.2
    assert scale_after(trace, alpha=0.1, before=NAN, backend=backend) == 1.0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("alpha", "trace"), [(1.0, 1e300), (1e300, 1e300), (1e-2, 1e15)])
def test_a_huge_trace_leaves_a_positive_rate(backend, alpha, trace):
    scale = scale_after(trace, alpha=alpha, backend=backend)
    assert scale == SMALLEST
    assert torch.tensor(1e-3) * scale > 0


@pytest.mark.parametrize("backend", BACKENDS)
@property_test
@given(
    traces=st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=2, max_size=5),
    alpha=st.floats(0, 1e6),
)
def test_more_curvature_never_means_a_higher_rate(backend, traces, alpha):
    scales = [scale_after(trace, alpha=alpha, backend=backend) for trace in sorted(traces)]
    assert scales == sorted(scales, reverse=True)
    assert all(SMALLEST <= scale <= 1 for scale in scales)


@pytest.mark.parametrize(
    ("alpha", "error"),
    [
        (-1e-9, ValueError),
        (NAN, ValueError),
        (INF, ValueError),
        (True, TypeError),
        ("1", TypeError),
        (None, TypeError),
    ],
)
def test_alpha(alpha, error):
    with pytest.raises(error, match="alpha must be a finite number >= 0, got"):
        ReciprocalRule(alpha, "auto")


def smooth(beta: float, *readings: float) -> list[float]:
    ema = BiasCorrectedEma(beta)
    return [ema.update(float64(reading)).item() for reading in readings]


def test_without_smoothing_readings_pass_through():
    assert smooth(0.0, 3.0, -1.0, 1e30) == [3.0, -1.0, 1e30]


def test_bias_corrected_average():
    """beta = 1/2: means 4, 8, 2 of weights 1/2, 1/4, 1/8 / (1 - beta^n), as in Adam."""
    first = 4.0
    second = (4 / 4 + 8 / 2) / (3 / 4)  # 20/3
    third = (4 / 8 + 8 / 4 + 2 / 2) / (7 / 8)  # 4
    assert smooth(0.5, 4.0, 8.0, 2.0) == pytest.approx([first, second, third], rel=1e-14)


def test_equal_readings_stay_what_they_are():
    """Without the correction the first would be 0.7, a tenth of the reading."""
    assert smooth(0.9, 7.0, 7.0, 7.0) == pytest.approx([7.0, 7.0, 7.0], rel=1e-14)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_readings_that_are_not_finite_are_left_out(bad):
    with_bad = smooth(0.5, 4.0, bad, bad, 8.0)
    assert [with_bad[0], with_bad[3]] == pytest.approx(smooth(0.5, 4.0, 8.0), rel=1e-14)
    # What comes out for it is not finite either, so that the rule skips it.
    assert not math.isfinite(with_bad[1])
    assert not math.isfinite(smooth(0.5, bad)[0])


@property_test
@given(
    beta=st.floats(0, 0.999),
    readings=st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=20),
)
def test_an_average_lies_between_its_readings(beta, readings):
    for n, value in enumerate(smooth(beta, *readings), start=1):
        slack = 1e-6 * max(abs(reading) for reading in readings) + 1e-12
        assert min(readings[:n]) - slack <= value <= max(readings[:n]) + slack


def test_state_goes_on_to_the_bit():
    ema = BiasCorrectedEma(0.7)
    for reading in (3.0, 9.0, -2.0):
        ema.update(float64(reading))
    state = ema.state()
    assert all(type(value) is float for value in state.values())
    resumed = BiasCorrectedEma(0.7)
    resumed.load(state)
    for reading in (5.0, 0.1):
        assert ema.update(float64(reading)).item() == resumed.update(float64(reading)).item()


@pytest.mark.parametrize(
    ("beta", "error"),
    [
        (1.0, ValueError),
        (-0.1, ValueError),
        (2, ValueError),
        (NAN, ValueError),
        (INF, ValueError),
        (False, TypeError),
        ("0.5", TypeError),
        (None, TypeError),
    ],
)
def test_smoothing(beta, error):
    with pytest.raises(error, match=r"smoothing must be a finite number >= 0 and < 1, got"):
        BiasCorrectedEma(beta)

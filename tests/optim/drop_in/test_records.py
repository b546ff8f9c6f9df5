"""What the rule makes of a reading: records for on_update, and smoothing."""

from __future__ import annotations

import math

import pytest
import torch

from metacurv import MetaCurvatureLR, UpdateRecord

from .reciprocal_training import (
    leaf,
    lrs,
    mlp,
    spring,
    train_on_fresh,
)


def test_records_hand_worked() -> None:
    """1 / (1 + alpha max(trace, 0)) at alpha 1/2: traces 2, 6, -4, 0 give 1/2, 1/4, 1, 1."""
    w = leaf(0.0, 0.0)
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        torch.optim.SGD([w], lr=0.5), alpha=0.5, update_freq=2, on_update=records.append
    )
    for stiffness in (1.0, 1.0, 3.0, 3.0, -2.0, -2.0, 0.0, 0.0):
        opt.zero_grad()
        loss = spring(w, stiffness)
        opt.update_curvature(loss)
        loss.backward()
        opt.step()
    assert [(r.step, r.trace, r.smoothed_trace, r.scale, r.effective_lrs) for r in records] == [
        (0, 2.0, 2.0, 0.5, [0.25]),
        (2, 6.0, 6.0, 0.25, [0.125]),
        (4, -4.0, -4.0, 1.0, [0.5]),
        (6, 0.0, 0.0, 1.0, [0.5]),
    ]
    assert all(r.accepted for r in records)
    assert all(math.isnan(r.stderr) for r in records)  # one probe tells nothing of its error
    with pytest.raises(AttributeError):
        records[0].scale = 1.0  # type: ignore[misc]


def test_records_of_a_model() -> None:
    model = mlp()
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        torch.optim.Adam(model.parameters(), lr=1e-2),
        alpha=0.3,
        update_freq=1,
        n_hutchinson_samples=2,
        on_update=records.append,
    )
    for step in range(6):
        train_on_fresh(model, opt, 1, start=step)
        record, estimate = records[-1], opt.last_estimate
        assert estimate is not None
        assert (record.step, record.trace, record.stderr) == (step, estimate.value, estimate.stderr)
        assert record.scale == 1 / (1 + 0.3 * max(record.trace, 0.0))
        assert record.effective_lrs == [1e-2 * record.scale]
    assert len(records) == 6


@pytest.mark.parametrize("seeds_loop", [False, True], ids=["update_curvature", "create_graph"])
@pytest.mark.filterwarnings("ignore:Using backward:UserWarning")
def test_a_failing_callback_propagates_and_corrupts_nothing(seeds_loop: bool) -> None:
    w = leaf(1.0, 1.0)

    def callback(record: UpdateRecord) -> None:
        if record.step == 0:
            raise RuntimeError("from the callback")

    opt = MetaCurvatureLR(
        torch.optim.SGD([w], lr=0.5), alpha=0.5, update_freq=1, on_update=callback
    )
    loss = spring(w, 1.0)
    if seeds_loop:
        loss.backward(create_graph=True)
    with pytest.raises(RuntimeError, match="from the callback"):
        opt.step() if seeds_loop else opt.update_curvature(loss)
    assert lrs(opt) == [0.5]
    assert w.tolist() == [1.0, 1.0]
    assert w.grad is None or w.grad.grad_fn is None
    if not seeds_loop:
        loss.backward()
    opt.step()  # the reading was taken; the step goes on with it
    assert lrs(opt) == [0.5]
    assert w.tolist() == [0.75, 0.75]
    opt.zero_grad()
    loss = spring(w, 3.0)
    opt.update_curvature(loss)
    assert opt.effective_lrs == [0.125]


@pytest.mark.parametrize("smoothing", [0.5, 0.9])
def test_smoothing_hand_worked(smoothing: float) -> None:
    """Adam's bias-corrected average, written out: m <- b m + (1 - b) x, m / (1 - b^n)."""
    w = leaf(0.0, 0.0)
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        torch.optim.SGD([w], lr=0.5),
        alpha=0.5,
        update_freq=1,
        smoothing=smoothing,
        on_update=records.append,
    )
    mean = 0.0
    for n, stiffness in enumerate([1.0, 3.0, -2.0, 5.0], start=1):
        opt.update_curvature(spring(w, stiffness))
        opt.step()
        mean = smoothing * mean + (1 - smoothing) * 2 * stiffness
        smoothed = mean / (1 - smoothing**n)
        record = records[-1]
        assert record.trace == 2 * stiffness
        assert record.smoothed_trace == pytest.approx(smoothed, rel=1e-12)
        assert record.scale == pytest.approx(1 / (1 + 0.5 * max(smoothed, 0.0)), rel=1e-12)
    assert records[0].smoothed_trace == pytest.approx(2.0, rel=1e-12)  # no bias towards 0

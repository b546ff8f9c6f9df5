"""Line 15, and what a user reads: when a reading is due, what it is, and what the rule makes of it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from metacurv import MetaCurvatureLR, UpdateRecord, ops
from metacurv.rules.reciprocal import ReciprocalRule
from metacurv.rules.smoothing import BiasCorrectedEma

from .helpers import (
    assert_same,
    batch,
    curvature_state,
    leaf,
    loss_of,
    lrs,
    mlp,
    spring,
    train,
    weights,
)


def finite_and_positive(opt: MetaCurvatureLR) -> bool:
    rates = [*opt.effective_lrs, *(float(group["lr_scale"]) for group in opt.param_groups)]
    return all(math.isfinite(rate) and rate > 0 for rate in rates)


# When.


@pytest.mark.parametrize("update_freq", [1, 2, 5, 100])
def test_update_freq(update_freq: int) -> None:
    """Due at steps 0, f, 2 f, ...; update_curvature says whether it measured."""
    model = mlp()
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1),
        update_freq=update_freq,
        on_update=records.append,
    )
    measured = []
    for step in range(11):
        opt.zero_grad()
        loss = loss_of(model, step)
        measured.append(opt.update_curvature(loss))
        loss.backward()
        opt.step()
    assert measured == [step % update_freq == 0 for step in range(11)]
    assert [record.step for record in records] == list(range(0, 11, update_freq))


def test_a_step_that_is_not_due_does_not_look_at_the_loss() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), update_freq=2)
    train(model, opt, 1)
    assert not opt.update_curvature(torch.tensor(1.0))  # would be refused if it were due


def test_at_most_one_reading_between_two_steps() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), update_freq=1)
    loss = loss_of(model)
    assert opt.update_curvature(loss)
    first = opt.last_estimate
    assert not opt.update_curvature(loss)
    assert opt.last_estimate == first or math.isnan(first.stderr)  # type: ignore[union-attr]
    assert curvature_state(opt)["probes"] == 1
    loss.backward()
    opt.step()
    assert opt.update_curvature(loss_of(model))


def test_gradient_accumulation_measures_the_first_micro_batch_once() -> None:
    model = mlp(torch.float64)
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1), update_freq=1, n_hutchinson_samples=2
    )
    for step in range(3):
        model_then = mlp(torch.float64)
        model_then.load_state_dict(model.state_dict())
        opt.zero_grad()
        measured = []
        for micro in range(4):
            loss = loss_of(model, 4 * step + micro) / 4
            measured.append(opt.update_curvature(loss))
            loss.backward()
        opt.step()
        assert measured == [True, False, False, False]
        assert opt.last_estimate is not None
        expected = samples_by_hand(loss_of(model_then, 4 * step) / 4, model_then, 0, 2 * step, 2)
        assert opt.last_estimate.value == pytest.approx(sum(expected) / 2, rel=1e-10)


def test_gradient_clipping() -> None:
    """Between backward and step, as always: the reading is the loss's, the step is the clipped
    gradient's.
    """
    w = leaf(3.0, 4.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=1.0), alpha=0.5)
    loss = spring(w, 1.0)  # gradient (3, 4), trace 2, scale 1 / 2
    opt.update_curvature(loss)
    loss.backward()
    nn.utils.clip_grad_norm_([w], 1.0)
    opt.step()
    assert opt.last_estimate is not None
    assert opt.last_estimate.value == 2.0
    assert w.tolist() == pytest.approx([3.0 - 0.3, 4.0 - 0.4], rel=1e-6)


# What.


def samples_by_hand(
    loss: Tensor, model: nn.Module, seed: int, first_probe: int, n: int
) -> list[float]:
    """v . H v with plain autograd, for the probes of the random-number contract."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    samples = []
    for probe in range(first_probe, first_probe + n):
        v = [torch.empty_like(p, requires_grad=False) for p in parameters]
        ops.rademacher_(v, seed=seed, probe=probe, backend="reference")
        products = torch.autograd.grad(gradients, parameters, v, retain_graph=True)
        samples.append(sum(float((a * b).sum()) for a, b in zip(v, products, strict=True)))
    return samples


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_every_reading_uses_the_next_probes(backend: str) -> None:
    """Reading r averages probes n r ... n r + n - 1 of the seed; value and stderr against plain
    autograd, in float64.
    """
    model = mlp(torch.float64)
    n, seed = 3, 1234567
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1),
        update_freq=2,
        n_hutchinson_samples=n,
        seed=seed,
        backend=backend,
    )
    for step in range(5):
        expected = samples_by_hand(loss_of(model, step), model, seed, n * (step // 2), n)
        train(model, opt, 1, start=step)
        if step % 2 == 0:
            estimate = opt.last_estimate
            assert estimate is not None
            mean = sum(expected) / n
            deviation = math.sqrt(sum((s - mean) ** 2 for s in expected) / (n - 1))
            assert estimate.value == pytest.approx(mean, rel=1e-10)
            assert estimate.stderr == pytest.approx(deviation / math.sqrt(n), rel=1e-8)
            assert (estimate.n_samples, estimate.seed) == (n, seed)
            assert (estimate.method, estimate.kind) == ("hutchinson", "hessian")


def test_readings_depend_on_the_seed_and_on_nothing_else() -> None:
    values = []
    for seed in (5, 5, 6):
        model = mlp()
        opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), seed=seed)
        torch.rand(seed)  # other random numbers drawn meanwhile
        opt.update_curvature(loss_of(model))
        assert opt.last_estimate is not None
        values.append(opt.last_estimate.value)
    assert values[0] == values[1] != values[2]


def test_before_any_reading() -> None:
    opt = MetaCurvatureLR(torch.optim.SGD([leaf(1.0)], lr=0.5))
    assert opt.last_estimate is None
    assert opt.effective_lrs == [0.5]
    assert opt.param_groups[0]["lr_scale"] == 1.0
    assert opt.skipped_readings == 0


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
def test_effective_lrs_follow_the_users_lr(lr: Any) -> None:
    w, u = leaf(1.0), leaf(1.0)
    base = torch.optim.SGD([{"params": [w]}, {"params": [u], "lr": 0.25}], lr=lr)
    opt = MetaCurvatureLR(base, alpha=0.5)
    opt.update_curvature(spring(w, 1.0) + spring(u, 1.0))  # trace 2
    assert opt.effective_lrs == [0.25, 0.125]
    opt.param_groups[1]["lr"] = 1.0
    assert opt.effective_lrs == [0.25, 0.5]
    assert [group["lr_scale"] for group in opt.param_groups] == [0.5, 0.5]


def test_records_hand_worked() -> None:
    """scale = 1 / (1 + alpha max(trace, 0)): traces 2, 6, -4, 0 at alpha 1/2 give 1/2, 1/4, 1, 1."""
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
        train(model, opt, 1, start=step)
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
    with pytest.raises(RuntimeError, match="from the callback"):
        if seeds_loop:
            loss.backward(create_graph=True)
        else:
            opt.update_curvature(loss)
            loss.backward()
        opt.step()
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


# Line 15: readings that are negative or not finite.


def power_loss(w: Tensor) -> Tensor:
    """sum |w|^1.5: at 0 the value and the gradient are 0 and the second derivative is nan in
    autograd.
    """
    return w.abs().pow(1.5).sum()


class InfiniteCurvature(torch.autograd.Function):
    """sum of w, with gradient 1 and a second derivative of +inf for every element."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        ctx.save_for_backward(w)
        return w.sum()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (w,) = ctx.saved_tensors
        return InfiniteSlope.apply(w) * grads[0]


class InfiniteSlope(torch.autograd.Function):
    """1 for every element, with derivative +inf."""

    @staticmethod
    def forward(ctx: Any, w: Tensor) -> Tensor:
        return torch.ones_like(w)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0] * math.inf


BAD_LOSSES = {"nan": power_loss, "inf": lambda w: InfiniteCurvature.apply(w)}


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
@pytest.mark.parametrize("name", BAD_LOSSES)
def test_line_15_a_reading_that_is_not_finite_is_counted_and_changes_nothing(
    name: str, smoothing: float
) -> None:
    """First before any good reading, then after one, whose scale stays; then a good one again."""
    w = leaf(0.0)
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        torch.optim.SGD([w], lr=0.5),
        alpha=0.5,
        update_freq=1,
        smoothing=smoothing,
        on_update=records.append,
    )

    def reading(loss: Tensor) -> None:
        assert bool(loss.isfinite())
        assert opt.update_curvature(loss)
        opt.step()  # without gradients: w stays 0

    reading(BAD_LOSSES[name](w))
    assert opt.skipped_readings == 1
    assert opt.effective_lrs == [0.5]
    reading(spring(w, 2.0))  # scale 1 / 2
    average = curvature_state(opt)["ema"]
    reading(BAD_LOSSES[name](w))
    assert opt.skipped_readings == 2
    assert opt.effective_lrs == pytest.approx([0.25], rel=1e-12)
    assert opt.param_groups[0]["lr_scale"] == pytest.approx(0.5, rel=1e-12)
    assert_same(curvature_state(opt)["ema"], average)
    assert opt.last_estimate is not None
    assert not math.isfinite(opt.last_estimate.value)  # as measured
    reading(spring(w, 2.0))
    assert opt.skipped_readings == 2
    assert opt.effective_lrs == pytest.approx([0.25], rel=1e-12)

    assert [r.accepted for r in records] == [False, True, False, True]
    assert all(math.isfinite(r.scale) and 0 < r.scale <= 1 for r in records)
    assert lrs(opt) == [0.5]


def test_line_15_skipped_readings_survive_a_checkpoint() -> None:
    w = leaf(0.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.5), update_freq=1)
    opt.update_curvature(power_loss(w))
    other = MetaCurvatureLR(torch.optim.SGD([leaf(0.0)], lr=0.5))
    other.load_state_dict(opt.state_dict())
    assert other.skipped_readings == 1


def test_line_15_negative_curvature_is_clamped() -> None:
    """At the top of a hill the trace is negative: the rate is the user's, and the reading is kept
    as measured.
    """
    w = leaf(1.0, 2.0, 3.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.5), alpha=100.0)
    loss = spring(w, -7.0)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
    assert opt.last_estimate is not None
    assert opt.last_estimate.value == -21.0
    assert opt.skipped_readings == 0
    assert opt.effective_lrs == [0.5]
    assert w.tolist() == [4.5, 9.0, 13.5]


def test_line_15_nan_in_the_training_data() -> None:
    """A loss of nan is refused before anything changes; the next step is due again."""
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1))
    before, state = weights(model), curvature_state(opt)
    x, y = batch(0)
    with pytest.raises(ValueError, match="loss must be finite, got nan"):
        opt.update_curvature(nn.functional.cross_entropy(model(x * math.nan), y))
    assert_same(curvature_state(opt), state)
    assert_same(weights(model), before)
    assert opt.update_curvature(loss_of(model))


any_float = st.floats(allow_nan=True, allow_infinity=True, width=64)


@given(
    traces=st.lists(any_float, min_size=1, max_size=8),
    alpha=st.floats(min_value=0.0, max_value=1e300),
    smoothing=st.sampled_from([0.0, 0.5, 0.99]),
)
@settings(max_examples=300, deadline=None)
def test_line_15_rule_and_smoothing_keep_the_scale_in_bounds(
    traces: list[float], alpha: float, smoothing: float
) -> None:
    """Any sequence of readings: the scale is finite and in [2^-40, 1], and is the formula's where
    that is representable.
    """
    rule, ema = ReciprocalRule(alpha, "auto"), BiasCorrectedEma(smoothing)
    scale = torch.ones((), dtype=torch.float64)
    previous = 1.0
    for trace in traces:
        smoothed = ema.update(torch.tensor(trace, dtype=torch.float64))
        rule.update_(scale, smoothed)
        value = float(scale)
        assert math.isfinite(value)
        assert 2.0**-40 <= value <= 1.0
        if smoothing == 0.0:
            if not math.isfinite(trace):
                assert value == previous
            else:
                assert value == max(1 / (1 + alpha * max(trace, 0.0)), 2.0**-40)
        previous = value


@given(
    stiffnesses=st.lists(st.floats(-1e307, 1e307), min_size=1, max_size=5),
    alpha=st.floats(min_value=0.0, max_value=1e300),
    lr=st.floats(min_value=1e-30, max_value=1e3),
    smoothing=st.sampled_from([0.0, 0.9]),
    tensor_lr=st.booleans(),
)
@settings(max_examples=100, deadline=None)
def test_line_15_lr_stays_finite_and_positive_whatever_is_measured(
    stiffnesses: list[float], alpha: float, lr: float, smoothing: float, tensor_lr: bool
) -> None:
    """Through the optimizer: curvatures up to the edge of float64, with readings of nan between
    them.
    """
    w = leaf(0.0)
    given_lr: Any = torch.tensor(lr, dtype=torch.float64) if tensor_lr else lr
    base = torch.optim.SGD([w], lr=given_lr)
    opt = MetaCurvatureLR(base, alpha=alpha, update_freq=1, smoothing=smoothing)
    seen: list[float] = []
    base.register_step_pre_hook(lambda o, *_: seen.append(float(o.param_groups[0]["lr"])))
    for stiffness in stiffnesses:
        for loss in (spring(w, stiffness), power_loss(w)):
            opt.update_curvature(loss)
            assert finite_and_positive(opt)
            opt.step()
            assert lrs(opt) == [lr]
    assert all(math.isfinite(rate) and 0 < rate <= lr for rate in seen)
    assert opt.skipped_readings >= len(stiffnesses)

"""Wrong input to MetaCurvatureLR: the error names the argument, what it needs and what it got; nothing has changed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from metacurv import MetaCurvatureLR
from tests.helpers import ESTIMATOR_BACKENDS, assert_same
from tests.problems.bad_losses import INF, LOSSES, NAN, weight


def snapshot(optimizer, w):
    """Everything a failure must leave as it was."""
    return {
        "state": copy.deepcopy(optimizer.state_dict()),
        "groups": [
            {key: value for key, value in group.items() if key != "params"}
            for group in copy.deepcopy(optimizer.param_groups)
        ],
        "grad": None if w.grad is None else w.grad.clone(),
        "w": w.detach().clone(),
        "attributes": sorted(vars(optimizer)),
    }


def adam(w, steps=2):
    """An optimizer with a history."""
    optimizer = torch.optim.Adam([w], lr=0.25)
    for _ in range(steps):
        w.grad = torch.ones_like(w)
        optimizer.step()
    return optimizer


OPTIONS = [
    ("alpha", -0.1, ValueError),
    ("alpha", NAN, ValueError),
    ("alpha", INF, ValueError),
    ("alpha", True, TypeError),
    ("alpha", "0.1", TypeError),
    ("alpha", None, TypeError),
    ("alpha", torch.tensor(0.1), TypeError),
    ("alpha", 1j, TypeError),
    ("update_freq", 0, ValueError),
    ("update_freq", -1, ValueError),
    ("update_freq", 1.0, TypeError),
    ("update_freq", True, TypeError),
    ("update_freq", "10", TypeError),
    ("update_freq", None, TypeError),
    ("n_hutchinson_samples", 0, ValueError),
    ("n_hutchinson_samples", 2**32, ValueError),
    ("n_hutchinson_samples", 1.5, TypeError),
    ("n_hutchinson_samples", True, TypeError),
    ("seed", -1, ValueError),
    ("seed", 2**64, ValueError),
    ("seed", 0.5, TypeError),
    ("seed", None, TypeError),
    ("rule", "linear", ValueError),
    ("rule", None, ValueError),
    ("rule", 3, ValueError),
    ("smoothing", -0.1, ValueError),
    ("smoothing", 1.0, ValueError),
    ("smoothing", NAN, ValueError),
    ("smoothing", True, TypeError),
    ("smoothing", "0.9", TypeError),
    ("on_update", 3, TypeError),
    ("on_update", "print", TypeError),
    ("backend", "cuda", ValueError),
    ("backend", None, ValueError),
]


@pytest.mark.parametrize(("argument", "value", "error"), OPTIONS)
def test_options(argument, value, error):
    w = weight()
    base = adam(w)
    before = snapshot(base, w)
    with pytest.raises(error, match=f"{argument} must be .*, got "):
        MetaCurvatureLR(base, **{argument: value})
    assert_same(snapshot(base, w), before)


def test_options_are_named():
    with pytest.raises(TypeError):
        MetaCurvatureLR(adam(weight()), 0.01)


def test_an_unknown_option():
    with pytest.raises(TypeError, match="lr"):
        MetaCurvatureLR(adam(weight()), lr=0.1)


def wrapped():
    return MetaCurvatureLR(adam(weight()))


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda: None, id="None"),
        pytest.param(lambda: nn.Linear(2, 2).parameters(), id="parameters"),
        pytest.param(lambda: torch.optim.Adam, id="a class"),
        pytest.param(lambda: torch.optim.lr_scheduler.StepLR(adam(weight()), 1), id="a scheduler"),
        pytest.param(lambda: torch.optim.LBFGS([weight()]), id="LBFGS"),
        pytest.param(wrapped, id="wrapped already"),
    ],
)
def test_optimizers(make):
    with pytest.raises(TypeError, match=r"optimizer must .*, got "):
        MetaCurvatureLR(make())


@pytest.mark.parametrize(
    ("parameter", "error"),
    [
        pytest.param(
            lambda: torch.ones(2, dtype=torch.complex64, requires_grad=True),
            TypeError,
            id="complex",
        ),
        pytest.param(lambda: torch.eye(2).to_sparse().requires_grad_(), TypeError, id="sparse"),
        pytest.param(
            lambda: torch.ones(2, device="meta", requires_grad=True), ValueError, id="two devices"
        ),
    ],
)
def test_parameters_of_an_optimizer(parameter, error):
    """The wrapper is refused and the base as it was; a group added later is refused and not added."""
    w = weight()
    bad = parameter()
    base = torch.optim.SGD([w, bad], lr=0.25)
    keys = set(base.param_groups[0])
    with pytest.raises(error, match="param"):
        MetaCurvatureLR(base)
    assert set(base.param_groups[0]) == keys
    optimizer = MetaCurvatureLR(torch.optim.SGD([w], lr=0.25))
    before = snapshot(optimizer, w)
    with pytest.raises(error, match="param"):
        optimizer.add_param_group({"params": [bad]})
    assert_same(snapshot(optimizer, w), before)
    assert optimizer.update_curvature((w**3).sum())


@pytest.mark.parametrize("backend", ESTIMATOR_BACKENDS)
@pytest.mark.parametrize("case", LOSSES)
def test_losses_of_an_optimizer(case, backend):
    """A failed reading changes nothing: the next one is what it would have been, and so is the step."""
    make, error, message = LOSSES[case]
    seen = []
    results = []
    for fail in (True, False):
        w = weight()
        optimizer = MetaCurvatureLR(
            adam(w),
            alpha=0.1,
            update_freq=2,
            n_hutchinson_samples=2,
            smoothing=0.5,
            on_update=seen.append,
            backend=backend,
        )
        assert optimizer.update_curvature((w**4).sum())
        for _ in range(2):
            w.grad = torch.ones_like(w)
            optimizer.step()
        if fail:
            w.grad = None
            readings = len(seen)
            loss = make(w)
            before = snapshot(optimizer, w)
            estimate, rates = optimizer.last_estimate, optimizer.effective_lrs
            with pytest.raises(error, match=message):
                optimizer.update_curvature(loss)
            assert_same(snapshot(optimizer, w), before)
            assert (optimizer.last_estimate, optimizer.effective_lrs) == (estimate, rates)
            assert optimizer.skipped_readings == 0
            assert len(seen) == readings
        assert optimizer.update_curvature((w**4).sum())
        w.grad = torch.ones_like(w)
        optimizer.step()
        results.append((optimizer.last_estimate, optimizer.effective_lrs, w.tolist()))
    assert results[0] == results[1]


@pytest.mark.parametrize("case", LOSSES)
def test_steps_that_are_not_due_look_at_nothing(case):
    """They cost a comparison: the loss is not even checked."""
    w = weight()
    optimizer = MetaCurvatureLR(adam(w), update_freq=3)
    optimizer.update_curvature((w**4).sum())
    loss = LOSSES[case][0](w)
    assert optimizer.update_curvature(loss) is False
    w.grad = torch.ones_like(w)
    optimizer.step()
    assert optimizer.update_curvature(loss) is False


def test_a_reading_that_overflows_is_skipped_and_counted():
    """A finite loss with a Hessian beyond float32: no error, no change, and the rate stays finite and positive."""
    w = torch.tensor([1e-4], requires_grad=True)
    records = []
    optimizer = MetaCurvatureLR(
        torch.optim.SGD([w], lr=0.25), alpha=1.0, update_freq=1, on_update=records.append
    )
    assert optimizer.update_curvature((w**2).sum())
    assert optimizer.effective_lrs == pytest.approx([0.25 / 3])
    w.grad = torch.zeros_like(w)
    optimizer.step()
    assert optimizer.update_curvature((w * 1e19).square().sum() * 1e4)
    assert optimizer.skipped_readings == 1
    assert optimizer.effective_lrs == pytest.approx([0.25 / 3])
    assert [record.accepted for record in records] == [True, False]
    optimizer.step()
    assert bool(w.isfinite().all())


@pytest.mark.parametrize(
    ("state", "error", "message"),
    [
        (3, TypeError, "state_dict must be a dict, got int 3"),
        (
            {},
            ValueError,
            "state_dict must be that of an optimizer, lacks .*'param_groups', 'state'",
        ),
        (
            {"state": {}, "model": 1},
            ValueError,
            "lacks .'param_groups'., got keys .'model', 'state'",
        ),
    ],
    ids=str,
)
def test_state_dicts_of_something_else(state, error, message):
    w = weight()
    opt = MetaCurvatureLR(adam(w))
    before = snapshot(opt, w)
    with pytest.raises(error, match=message):
        opt.load_state_dict(state)
    assert_same(snapshot(opt, w), before)


@pytest.mark.parametrize("name", ["update_freq", "n_hutchinson_samples"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (2.5, TypeError)])
def test_what_is_set_later_is_checked_too(name, value, error):
    opt = MetaCurvatureLR(adam(weight()))
    before = getattr(opt, name)
    with pytest.raises(error, match=f"{name} must be"):
        setattr(opt, name, value)
    assert getattr(opt, name) == before
    setattr(opt, name, 3)
    assert getattr(opt, name) == 3

"""Lines 5 and 8: own state is a versioned dict of numbers, checked before anything changes."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch

from metacurv import MetaCurvatureLR
from metacurv.optim.carried_state import taken_out
from tests.helpers import assert_same, own, with_own

from .reciprocal_training import (
    OPTIMIZERS,
    bare_state,
    curvature_state,
    leaf,
    lrs,
    mlp,
    spring,
    through_a_file,
    train_on_fresh,
    weights,
    wrapped,
)


def test_own_state_is_a_versioned_dict_of_numbers() -> None:
    model = mlp()
    opt = wrapped("Adam", model, smoothing=0.9, seed=2**64 - 1)
    train_on_fresh(model, opt, 4)
    state = curvature_state(opt)
    assert state["version"] == 1
    assert state["seed"] == 2**64 - 1
    assert_same(json.loads(opt.state_dict()["param_groups"][0]["metacurv"]), state)  # no tensor
    assert_same(own(through_a_file(opt.state_dict())), state)
    for group in opt.param_groups:
        assert type(group["lr_scale"]) is float


def test_a_half_precision_model_does_not_round_our_state() -> None:
    """The base casts state[p] to the parameter's dtype when it loads; ours is not there."""
    model = mlp(torch.bfloat16)
    opt = MetaCurvatureLR(torch.optim.Adam(model.parameters()), smoothing=0.9, update_freq=1)
    train_on_fresh(model, opt, 3)
    before = curvature_state(opt)
    assert before["scale"] != float(torch.tensor(before["scale"], dtype=torch.bfloat16))
    opt.load_state_dict(through_a_file(opt.state_dict()))
    assert_same(curvature_state(opt), before)
    for entry in opt.state.values():
        assert not any(name.startswith("metacurv") for name in entry)


def test_state_dict_is_a_snapshot_of_our_part() -> None:
    model = mlp()
    opt = wrapped("SGD", model, smoothing=0.9)
    train_on_fresh(model, opt, 2)
    state = opt.state_dict()
    before = copy.deepcopy(own(state))
    train_on_fresh(model, opt, 5, start=2)
    assert_same(own(state), before)


def test_loading_does_not_write_to_the_given_dict() -> None:
    model = mlp()
    opt = wrapped("Adam", model)
    train_on_fresh(model, opt, 2)
    state = copy.deepcopy(opt.state_dict())
    before = copy.deepcopy(state)
    wrapped("Adam", mlp()).load_state_dict(state)
    assert_same(state, before)


@pytest.mark.parametrize("name", ["SGD-nesterov", "Adam", "Adagrad"])
def test_a_checkpoint_of_the_bare_base_loads(name: str) -> None:
    """Momentum comes along, the curvature part starts as in a new wrapper."""
    bare_model = mlp()
    bare = OPTIMIZERS[name](list(bare_model.parameters()))
    train_on_fresh(bare_model, bare, 4, curvature=False)
    state = through_a_file(bare.state_dict())
    assert own(state) is None

    model = mlp()
    used = wrapped(name, model, alpha=0.0, smoothing=0.9)
    train_on_fresh(model, used, 5)  # has readings, a step count and an average to forget
    model.load_state_dict(bare_model.state_dict())
    with pytest.warns(UserWarning, match="begins afresh"):
        used.load_state_dict(state)
    assert_same(bare_state(used.state_dict()), bare_state(bare.state_dict()))
    assert_same(curvature_state(used), curvature_state(wrapped(name, mlp(), smoothing=0.9)))
    assert [group["lr_scale"] for group in used.param_groups] == [1.0]
    assert used.last_estimate is None
    train_on_fresh(bare_model, bare, 4, start=4, curvature=False)
    train_on_fresh(model, used, 4, start=4)
    assert_same(weights(model), weights(bare_model))


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "without our entry"])
def test_the_bare_base_loads_a_checkpoint_of_the_wrapper(whole: bool) -> None:
    model = mlp()
    opt = wrapped("Adam", model)
    train_on_fresh(model, opt, 4)
    state = through_a_file(opt.state_dict())
    if not whole:
        state = taken_out(state, [])[2]
    bare_model = mlp()
    bare_model.load_state_dict(model.state_dict())
    bare = OPTIMIZERS["Adam"](list(bare_model.parameters()))
    bare.load_state_dict(state)
    assert_same(bare_state(bare.state_dict()), bare_state(opt.state_dict()))
    assert lrs(bare) == [1e-2]  # the user's lr, not the scaled one
    train_on_fresh(bare_model, bare, 2, start=4, curvature=False)

    unscaled = MetaCurvatureLR(opt.optimizer, alpha=0.0)
    train_on_fresh(model, unscaled, 2, start=4)
    assert_same(weights(bare_model), weights(model))


def corrupt(path: tuple[str, ...], value: Any = None) -> Any:
    """A function that returns a state dict with own(state)[path] set to value, or without it where value is None."""

    def change(state: dict[str, Any]) -> dict[str, Any]:
        if not path:
            return with_own(state, value)
        changed = part = own(state)
        *parents, last = path
        for key in parents:
            part = part[key]
        if value is None:
            del part[last]
        else:
            part[last] = value
        return with_own(state, changed)

    return change


ENTRIES = ("version", "seed", "steps", "probes", "readings", "skipped", "measured_step", "scale")
CORRUPTIONS = {
    **{f"no {entry}": corrupt((entry,)) for entry in (*ENTRIES, "ema")},
    "no ema.mean": corrupt(("ema", "mean")),
    "no ema.power": corrupt(("ema", "power")),
    "version 2": corrupt(("version",), 2),
    "not a dict": corrupt((), [1, 2]),
    "ema not a dict": corrupt(("ema",), 0.5),
    "ema.mean text": corrupt(("ema", "mean"), "much"),
    "ema.mean nan": corrupt(("ema", "mean"), float("nan")),
    "ema.power above 1": corrupt(("ema", "power"), 1.5),
    "scale nan": corrupt(("scale",), float("nan")),
    "scale zero": corrupt(("scale",), 0.0),
    "scale negative": corrupt(("scale",), -0.5),
    "scale above 1": corrupt(("scale",), 1.5),
    "scale text": corrupt(("scale",), "half"),
    "seed negative": corrupt(("seed",), -5),
    "steps negative": corrupt(("steps",), -1),
    "steps text": corrupt(("steps",), "ten"),
    "probes too large": corrupt(("probes",), 1 << 32),
    "other parameter groups": lambda state: {
        **state,
        "param_groups": [*state["param_groups"], {"params": [], "lr": 1.0}],
    },
    "no JSON": lambda state: {
        **state,
        "param_groups": [{**state["param_groups"][0], "metacurv": "{"}],
    },
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_bad_checkpoint_is_refused_before_anything_changes(name: str) -> None:
    """ValueError or TypeError; a scale of nan must not become a learning rate."""
    donor_model = mlp()
    donor = wrapped("Adam", donor_model, smoothing=0.9)
    train_on_fresh(donor_model, donor, 5)
    state = copy.deepcopy(donor.state_dict())
    state["param_groups"][0]["lr"] = 0.5
    state = CORRUPTIONS[name](state)

    model = mlp()
    opt = wrapped("Adam", model, smoothing=0.9)
    train_on_fresh(model, opt, 2)
    before = copy.deepcopy(opt.state_dict())
    groups, estimate = opt.param_groups, opt.last_estimate
    with pytest.raises((ValueError, TypeError), match=r"metacurv|param.*group"):
        opt.load_state_dict(state)
    assert_same(opt.state_dict(), before)
    assert opt.param_groups is groups
    assert_same(opt.last_estimate, estimate)


def test_a_hand_made_state_dict_gives_back_the_scale() -> None:
    """Independent of training: trace 6, alpha 1/2, scale 1/4, through state_dict into a wrapper
    around another base.
    """
    w, u = leaf(1.0, 1.0, 1.0), leaf(2.0, 2.0, 2.0)
    first = MetaCurvatureLR(torch.optim.SGD([w], lr=0.5), alpha=0.5)
    first.update_curvature(spring(w, 2.0))
    second = MetaCurvatureLR(torch.optim.SGD([u], lr=0.125), alpha=0.5)
    second.load_state_dict(through_a_file(first.state_dict()))
    assert second.effective_lrs == [0.125]  # 0.5 / 4: lr travels in the group, as torch has it
    assert second.param_groups[0]["lr_scale"] == 0.25
    second.zero_grad()
    spring(u, 2.0).backward()
    second.step()
    assert u.tolist() == [2.0 - 0.125 * 4.0] * 3

"""A run that goes on from a checkpoint is the run that was not stopped, bit for bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from metacurv import DirectionalRule
from tests.directional.helpers import batch, data, directional, loader, network, train
from tests.drop_in.helpers import OPTIMIZERS, assert_same, through_a_file

BASES = sorted(set(OPTIMIZERS) - {"Rprop", "ASGD"})


def parts() -> list[Any]:
    return [batch(1000 + i) for i in range(5)]


class Endless:
    """An iterable without a length."""

    def __iter__(self) -> Any:
        return iter(parts())


PROBES = {"loader": loader, "list": parts, "iterable": Endless}


def made(name: str, probe: str, **options: Any) -> Any:
    model = network()
    opt = directional(
        OPTIMIZERS[name](list(model.parameters())), model, probe=PROBES[probe](), **options
    )
    return model, opt


@pytest.mark.parametrize("stop", [0, 1, 2, 19, 25])
@pytest.mark.parametrize("probe", list(PROBES))
def test_goes_on_bit_for_bit(probe: str, stop: int) -> None:
    options: dict[str, Any] = {"average": True, "horizon": 400, "seed": 4}
    model, opt = made("Adam", probe, **options)
    train(model, opt, stop)
    saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    train(model, opt, 45, start=stop)
    again, resumed = made("Adam", probe, **options)
    train(again, resumed, 3)  # whatever it did before
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    train(again, resumed, 45, start=stop)
    assert_same(model.state_dict(), again.state_dict())
    assert_same(opt.state_dict()["metacurv"], resumed.state_dict()["metacurv"])
    assert_same(opt.history[len(opt.history) - len(resumed.history) :], resumed.history)


@pytest.mark.parametrize("name", BASES)
def test_every_base(name: str) -> None:
    model, opt = made(name, "loader")
    train(model, opt, 7)
    saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    train(model, opt, 5, start=7)
    again, resumed = made(name, "loader")
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    train(again, resumed, 5, start=7)
    assert_same(model.state_dict(), again.state_dict())


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles(copied: Any) -> None:
    model, opt = made("Adam", "list", average=True)
    train(model, opt, 5)
    other, twin = copied((model, opt))
    train(model, opt, 30, start=5)
    train(other, twin, 30, start=5)
    assert_same(model.state_dict(), other.state_dict())


def test_a_bare_checkpoint_starts_afresh() -> None:
    model, opt = made("Adam", "list")
    train(model, opt, 5)
    bare = opt.optimizer.state_dict()
    opt.load_state_dict(bare)
    assert opt.history == []
    assert opt.effective_lrs[0] != opt.effective_lrs[0]  # nan: the next step finds it
    train(model, opt, 1, start=5)
    assert opt.history[0].step == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 0}, "version 2"),
        ({"version": 1}, "that of an earlier one"),
        ({"rule": "reciprocal"}, "rule='directional'"),
        ({"steps": -1}, "'steps'.* >= 0"),
        ({"early": {}}, "'early'.* must be a dict with"),
        ({"early": 3}, "'early'.* must be a dict with"),
        ({"guard": 3}, "'guard'.* must be a dict with"),
        ({"race": {}}, "'race'.* must be a dict with"),
        ({"judges": 1}, "'judges'.* must be True or False"),
        ({"first_loss": "1"}, "'first_loss'.* must be a finite number"),
        ({"average": None}, "average=True"),
        ({"average": {"taken": 3, "values": 3}}, "'values'.* must be a list of tensors, got int 3"),
        ({"started": 1}, "'started'.* must be True or False"),
    ],
)
def test_a_wrong_state_changes_nothing(change: dict[str, Any], message: str) -> None:
    model, opt = made("Adam", "list", average=True)
    train(model, opt, 5)
    state = opt.state_dict()
    before = copy.deepcopy(state)
    with pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict({**state, "metacurv": {**state["metacurv"], **change}})
    assert_same(opt.state_dict(), before)


@pytest.mark.parametrize("lr", [-0.1, 0.0, 1e300])
def test_a_rate_out_of_range_is_refused(lr: float) -> None:
    model, opt = made("Adam", "list")
    train(model, opt, 5)
    state = copy.deepcopy(opt.state_dict())
    state["metacurv"]["early"]["lr"] = [lr]
    with pytest.raises(ValueError, match=r"\['lr'\] must be a finite number >= 8.67362e-19"):
        opt.load_state_dict(state)


def test_a_state_of_the_other_rule_is_refused() -> None:
    from metacurv import MetaCurvatureLR

    _, opt = made("Adam", "list")
    traced = MetaCurvatureLR(torch.optim.Adam(network().parameters()))
    with pytest.raises(ValueError, match="rule='directional'"):
        opt.load_state_dict(traced.state_dict())
    with pytest.raises(ValueError, match="of rule='reciprocal', got dict"):
        traced.load_state_dict(opt.state_dict())
    assert len(data()) == 96
    assert DirectionalRule().per_group is False


def test_a_checkpoint_brings_its_seed() -> None:
    """The batches to come are those of the run that was saved, whatever seed the new wrapper was made with."""
    model, opt = made("Adam", "loader", seed=4)
    train(model, opt, 5)
    saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
    train(model, opt, 30, start=5)
    again, resumed = made("Adam", "loader", seed=9)
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    train(again, resumed, 30, start=5)
    assert_same(model.state_dict(), again.state_dict())

"""torch.distributed.checkpoint carries our state, and a training goes on from it bit for bit."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from metacurv import MetaCurvatureLR
from tests.distributed.checkpoints import WAYS
from tests.helpers import assert_same, own, run_two_ranks
from tests.optim.directional.directional_training import directional, network, train
from tests.optim.drop_in.reciprocal_training import weights


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any]:
    folder: Path = tmp_path_factory.mktemp("checkpoints")
    return run_two_ranks("tests.distributed.checkpoints", folder=folder)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", ["directional False", "directional True", "reciprocal False"])
def test_a_training_goes_on(ranks: tuple[Any, Any], case: str, way: str) -> None:
    """Whole and sharded parameters."""
    for rank in ranks:
        went_on, resumed = rank[f"{case} {way}"]
        assert_same(went_on, resumed)


def made(name: str) -> tuple[Any, MetaCurvatureLR]:
    model = network()
    bases: dict[str, Any] = {
        "SGD": lambda p: torch.optim.SGD(p, lr=0.1),
        "Adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
        "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1),
    }
    return model, directional(bases[name](model.parameters()), model, horizon=400)


@pytest.mark.parametrize("at", [10, 40])
@pytest.mark.parametrize("name", ["SGD", "Adagrad", "AdamW"])
def test_one_process_goes_on_also_in_a_race(name: str, at: int) -> None:
    model, opt = made(name)
    train(model, opt, at)
    assert (own(opt.state_dict())["race"] is not None) == (at == 40)
    # set_ hands over the tensors themselves, which later steps would change
    state = copy.deepcopy(get_optimizer_state_dict(model, opt))
    again, other = made(name)
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, other, state)
    train(model, opt, 100, start=at)
    train(again, other, 100, start=at)
    assert_same(weights(model), weights(again))
    assert opt.effective_lrs == other.effective_lrs


@pytest.mark.parametrize("name", ["SGD", "AdamW"])
@pytest.mark.parametrize("rule", ["directional", "reciprocal"])
def test_the_step_that_looks_what_there_is_to_load_is_no_step(name: str, rule: str) -> None:
    model, opt = made(name)
    if rule == "reciprocal":
        opt = MetaCurvatureLR(opt.optimizer, alpha=0.1)
    before = weights(model)
    get_optimizer_state_dict(model, opt)
    state = own(opt.state_dict())
    assert state["steps"] == 0
    if rule == "directional":
        assert state["average"]["taken"] == 0
    assert_same(weights(model), before)


def test_a_rate_of_zero_with_gradients_is_a_step() -> None:
    """As at the beginning of some warm-ups."""
    model, opt = made("AdamW")
    for group in opt.param_groups:
        group["initial_lr"], group["lr"] = group["lr"], 0.0
    train(model, opt, 1)
    assert own(opt.state_dict())["steps"] == 1


def test_a_form_that_drops_tensors_warns_and_goes_on() -> None:
    """The flat form keeps only what the base itself has in its state."""
    model, opt = made("AdamW")
    train(model, opt, 100)
    options = StateDictOptions(flatten_optimizer_state_dict=True)
    state = copy.deepcopy(get_optimizer_state_dict(model, opt, options=options))
    again, other = made("AdamW")
    again.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match="nothing of MetaCurvatureLR"):
        set_optimizer_state_dict(again, other, state, options=options)
    train(again, other, 10, start=100)


@pytest.mark.parametrize("part", ["average", "guard", "race"])
def test_a_part_that_lacks_tensors_begins_afresh(part: str) -> None:
    model, opt = made("AdamW")
    train(model, opt, 40)
    state = copy.deepcopy(opt.state_dict())
    for entries in state["state"].values():
        for name in [n for n in entries if n.startswith(f"metacurv_{part}_")]:
            del entries[name]
    again, other = made("AdamW")
    again.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=rf"state_dict lacks \['{part}_.*begins afresh"):
        other.load_state_dict(state)
    now = own(other.state_dict())
    assert now["steps"] == 40
    if part == "average":
        assert now["average"]["taken"] == 0
    if part == "guard":
        assert_same(list(now["guard"]["parameters"]), weights(again))
    train(again, other, 360, start=40)
    assert len([r for r in other.history if r.event == "race"]) == 1


def test_where_tensors_beside_the_numbers_are_dropped_the_guard_takes_the_models_buffers() -> None:
    model = network(norm=True)
    opt = directional(torch.optim.AdamW(model.parameters()), model, horizon=400, race=False)
    train(model, opt, 60)
    state = copy.deepcopy(opt.state_dict())
    del state["param_groups"][0]["metacurv_tensors"]
    again = network(norm=True)
    other = directional(torch.optim.AdamW(again.parameters()), again, horizon=400, race=False)
    again.load_state_dict(model.state_dict())
    with pytest.warns(UserWarning, match=r"state_dict lacks \['guard_.*begins afresh"):
        other.load_state_dict(state)
    kept = own(other.state_dict())["guard"]["buffers"]
    assert_same(list(kept.values()), [b for b in again.buffers()])
    train(again, other, 20, start=60)


def test_frozen_parameters_are_dropped_by_frameworks_and_loaded_all_the_same() -> None:
    def frozen() -> Any:
        model = network()
        model[0].bias.requires_grad_(False)
        return model, directional(torch.optim.AdamW(model.parameters()), model, horizon=400)

    model, opt = frozen()
    train(model, opt, 50)
    state = copy.deepcopy(get_optimizer_state_dict(model, opt))
    again, other = frozen()
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, other, state)
    train(model, opt, 30, start=50)
    train(again, other, 30, start=50)
    assert_same(weights(model), weights(again))

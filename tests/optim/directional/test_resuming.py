"""A run that goes on from a checkpoint is the run that was not stopped, bit for bit."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch

from tests.helpers import assert_same, own, sampled, with_own
from tests.optim.directional.directional_training import (
    batch,
    data,
    directional,
    loader,
    network,
    train,
)
from tests.optim.drop_in.reciprocal_training import OPTIMIZERS, through_a_file

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


@pytest.mark.parametrize("stop", sampled([19, 0, 1, 2, 25], 3))
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
    assert_same(own(opt.state_dict()), own(resumed.state_dict()))
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
    with pytest.warns(UserWarning, match="begins afresh"):
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
        ({"early_is_over": 1}, "'early_is_over'.* must be True or False"),
        ({"first_losses": ["1"]}, "'first_losses'.* must be a list of numbers"),
        ({"first_losses": 1.0}, "'first_losses'.* must be a list of numbers"),
        ({"average": None}, "average=True"),
        ({"average": {"taken": 3, "values": 3}}, "'values'.* must be a list of tensors, got int 3"),
        ({"started": 1}, "'started'.* must be True or False"),
        ({"began": -1}, "'began'.* >= 0"),
        ({"warm_up": [0.5, 1]}, "'warm_up'.* must be an integer"),
        ({"warm_up": None}, "'warm_up'.* must be a list of 2 integers"),
        ({"settling": [1, 2, -1]}, "'settling'.* >= 0"),
        ({"settling": [1, 2]}, "'settling'.* must be a list of 3 integers"),
        ({"raced": 1}, "'raced'.* must be below 1, got 1"),
        ({"entries": 3}, "'entries'.* must be a list of strings"),
        ({"entries": [3]}, "'entries'.* must be a list of strings"),
        ({"to_race": [1]}, r"'to_race'.* must be a list of some of \[0\], got list"),
        ({"to_race": [[]]}, "'to_race'.* must be a list of some of"),
        ({"to_race": 0}, "'to_race'.* must be a list of some of"),
        ({"first_lrs": [1.0, 1.0]}, "'first_lrs'.* must be a list of 1 numbers"),
    ],
)
def test_a_wrong_state_changes_nothing(change: dict[str, Any], message: str) -> None:
    model, opt = made("Adam", "list", average=True)
    train(model, opt, 5)
    state = opt.state_dict()
    before = copy.deepcopy(state)
    with pytest.raises((TypeError, ValueError), match=message):
        opt.load_state_dict(with_own(state, {**own(state), **change}))
    assert_same(opt.state_dict(), before)


@pytest.mark.parametrize(
    ("key", "value"), [("braked", [1]), ("normal_slopes", [3]), ("normal_slopes", [["x"]])]
)
def test_a_wrong_entry_of_the_early_rate_changes_nothing(key: str, value: Any) -> None:
    model, opt = made("Adam", "list")
    train(model, opt, 5)
    before = copy.deepcopy(opt.state_dict())
    changed = own(before)
    changed["early"][key] = value
    state = with_own(before, changed)
    with pytest.raises(TypeError, match=r"\['early'\]"):
        opt.load_state_dict(state)
    assert_same(opt.state_dict(), before)


@pytest.mark.parametrize("lr", [-0.1, 0.0, 1e300])
def test_a_rate_out_of_range_is_refused(lr: float) -> None:
    model, opt = made("Adam", "list")
    train(model, opt, 5)
    state = opt.state_dict()
    changed = own(state)
    changed["early"]["lr"] = [lr]
    state = with_own(state, changed)
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


def raced(wide: bool, **options: Any) -> tuple[Any, Any]:
    model = network(norm=True)
    probe: Any = loader()
    if wide:
        labels = torch.randint(3, (96,), generator=torch.Generator().manual_seed(1))
        noise = torch.utils.data.TensorDataset(data().tensors[0], labels)
        probe = torch.utils.data.DataLoader(noise, batch_size=16)
    base = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
    return model, directional(base, model, probe=probe, horizon=400, seed=4, **options)


@pytest.mark.slow
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("wide", [False, True])
def test_a_checkpoint_of_every_phase_goes_on_bit_for_bit(wide: bool, average: bool) -> None:
    """In early steps, at every turn of both rounds, in hold and finish; into a fresh model and optimizer, from a file."""
    options: dict[str, Any] = {"average": average}
    model, opt = raced(wide, **options)
    saved: dict[int, Any] = {}
    seen = set()
    for step in range(400):
        race = opt._control._race
        # One checkpoint of every candidate in every round, and some outside the race.
        key = (
            (race._round, race.exponent, len(race.candidates))
            if race is not None
            else ("no race", step // 60, step < 20)
        )
        if key not in seen or step in (23, 28, 33):  # and some in the middle of a turn
            seen.add(key)
            saved[step] = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
        train(model, opt, 1, start=step)
    rounds = {(key[0], key[1]) for key in seen if isinstance(key[0], int)}
    assert {number for number, _ in rounds} == {0, 1}
    assert len(rounds) >= 5
    first = own(saved[23]["opt"])["race"]["candidates"]
    assert [part["exponent"] for part in first] == ([-2, 0, 2] if wide else [-1, 0, 1])
    for step, checkpoint in saved.items():
        again, resumed = raced(wide, **options)
        again.load_state_dict(checkpoint["model"])
        resumed.load_state_dict(checkpoint["opt"])
        # The first hundred steps and the end: what follows the race depends on all of it.
        stop = min(400, step + 130)
        train(again, resumed, stop - step, start=step)
        if stop == 400:
            assert_same(again.state_dict(), model.state_dict())
            assert_same(resumed.state_dict(), opt.state_dict())
        expected = [r for r in opt.history if step < r.step < stop or r.step == step == 0]
        got = [r for r in resumed.history if step < r.step < stop or r.step == step == 0]
        assert_same(got, expected)


class Slowing(torch.optim.Optimizer):
    """Descent that counts its steps in its groups and takes ever smaller ones, as some optimizers outside torch do."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1, "k": 0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                p -= group["lr"] / group["k"] ** 0.5 * p.grad


def test_what_a_base_counts_in_its_groups_begins_anew_after_the_early_steps() -> None:
    model = network()
    opt = directional(Slowing(model.parameters()), model, horizon=300, race=False)
    train(model, opt, 19)
    assert opt.param_groups[0]["k"] == 19
    train(model, opt, 1, start=19)
    assert opt.param_groups[0]["k"] == 0
    train(model, opt, 3, start=20)
    assert opt.param_groups[0]["k"] == 3


def test_what_a_base_counts_in_its_groups_goes_with_the_candidates() -> None:
    """Each of them has its own count, also after a resume in the middle of a race."""
    model = network()
    opt = directional(Slowing(model.parameters()), model, horizon=300)
    counts: dict[int, int] = {}
    saved = None
    for step in range(150):
        race = opt._control._race
        if race is not None:
            if step == 33:
                saved = through_a_file({"model": model.state_dict(), "opt": opt.state_dict()})
            counts.setdefault(race.exponent, 20)
            counts[race.exponent] += 1
        train(model, opt, 1, start=step)
        if race is not None and opt._control._race is race and race.exponent in counts:
            assert opt.param_groups[0]["k"] == counts[race.exponent]
    assert len(counts) >= 2
    again = network()
    resumed = directional(Slowing(again.parameters()), again, horizon=300)
    assert saved is not None
    again.load_state_dict(saved["model"])
    resumed.load_state_dict(saved["opt"])
    train(again, resumed, 117, start=33)
    assert_same(again.state_dict(), model.state_dict())
    assert resumed.param_groups[0]["k"] == opt.param_groups[0]["k"]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_and_pickles_in_a_race(copied: Any) -> None:
    model, opt = raced(False)
    train(model, opt, 33)
    assert own(opt.state_dict())["race"] is not None
    other, twin = copied((model, opt))
    train(model, opt, 120, start=33)
    train(other, twin, 120, start=33)
    assert_same(model.state_dict(), other.state_dict())
    assert_same(opt.history, twin.history)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("round", bad) for bad in (-1, 2, "x", None)),
        *(("taken", bad) for bad in (-1, "x", None)),
        *(("stride", bad) for bad in (0, 3, "x")),
        *(("lengths", bad) for bad in (3, [5], [5, 10, 15], [0, 5], ["x", 5])),
        *(("live", bad) for bad in (-1, 3, "x")),
        *(("first", bad) for bad in ("x", None)),
        *(("highest", bad) for bad in (-1, "x", None)),
        *(("root", bad) for bad in (3, [], {})),
    ],
)
def test_a_wrong_race_changes_nothing(key: str, value: Any) -> None:
    model, opt = raced(False)
    train(model, opt, 33)
    state = opt.state_dict()
    before = copy.deepcopy(state)
    race = {**own(state)["race"], key: value}
    with pytest.raises((TypeError, ValueError), match=rf"\['race'\]\['{key}'\]"):
        opt.load_state_dict(with_own(state, {**own(state), "race": race}))
    assert_same(opt.state_dict(), before)


@pytest.mark.parametrize(
    "change",
    [3, [], [3], [{}], "exponent", "steps", "losses", "noise", "place"],
)
def test_wrong_candidates_change_nothing(change: Any) -> None:
    model, opt = raced(False)
    train(model, opt, 33)
    state = opt.state_dict()
    before = copy.deepcopy(state)
    race = dict(own(state)["race"])
    if isinstance(change, str):
        race["candidates"] = [{**c, change: "x"} for c in race["candidates"]]
    else:
        race["candidates"] = change
    with pytest.raises((TypeError, ValueError), match=r"\['race'\]\['candidates'\]"):
        opt.load_state_dict(with_own(state, {**own(state), "race": race}))
    assert_same(opt.state_dict(), before)

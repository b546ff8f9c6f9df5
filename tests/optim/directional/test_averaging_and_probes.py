"""The average of the iterates, the phases of a training, and how batches are drawn."""

from __future__ import annotations

import copy
import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)
from torch.utils.data.distributed import DistributedSampler

from metacurv import DirectionalRecord, DirectionalRule
from metacurv.optim.directional.iterate_average import IterateAverage
from metacurv.optim.directional.probe_batches import ProbeBatches
from metacurv.optim.directional.rule import Settling
from tests.helpers import assert_same
from tests.optim.directional.directional_training import batch, data, directional, network, train
from tests.optim.drop_in.reciprocal_training import weights

CPU = torch.device("cpu")


def test_the_average_is_the_weighted_mean_of_the_iterates() -> None:
    """Written out: theta_i has weight 5 / (i + 5) times the product of j / (j + 5) over later steps j."""
    model = network(dtype=torch.float64)
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, average=True)
    iterates = [weights(model)]
    for step in range(12):
        train(model, opt, 1, start=step)
        iterates.append(weights(model))
    shares = [
        math.prod(j / (j + 5) for j in range(i + 1, 13)) * (5 / (i + 5) if i else 1)
        for i in range(13)
    ]
    assert sum(shares) == pytest.approx(1)
    last = weights(model)
    with opt.averaged_parameters():
        for k, p in enumerate(model.parameters()):
            expected = sum(
                share * iterate[k] for share, iterate in zip(shares, iterates, strict=True)
            )
            torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)
    assert all(torch.equal(a, b) for a, b in zip(last, model.parameters(), strict=True))


def test_the_average_leaves_when_an_error_comes() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, average=True)
    train(model, opt, 5)
    last = weights(model)
    with pytest.raises(KeyError), opt.averaged_parameters():
        raise KeyError
    assert all(torch.equal(a, b) for a, b in zip(last, model.parameters(), strict=True))


def test_the_horizon_ends_in_a_rate_next_to_zero_and_never_at_it() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=40, average=False)
    applied = []
    opt.optimizer.register_step_pre_hook(lambda o, *_: applied.append(o.param_groups[0]["lr"]))
    train(model, opt, 40)
    with pytest.warns(RuntimeWarning, match="horizon=40 steps have been taken") as warned:
        train(model, opt, 5, start=40)
    assert len(warned) == 1
    assert warned[0].filename.endswith("directional_training.py")  # the loop's line
    found = opt.history[-1].lr[0]
    # Without an average the last half: full up to step 20, then 19/20 of it, ..., 1/20, and so beyond what the loop promised.
    assert applied[20] == pytest.approx(found, rel=1e-12)
    for step in range(21, 40):
        assert applied[step] == pytest.approx(found * (40 - step) / 20, rel=1e-12)
    assert applied[40:] == pytest.approx([found / 20] * 5, rel=1e-12)


def test_a_checkpoint_from_beyond_a_shorter_horizon_warns_once() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=80)
    train(model, opt, 50)
    shorter = directional(torch.optim.Adam(model.parameters()), model, horizon=40)
    shorter.load_state_dict(opt.state_dict())
    with pytest.warns(RuntimeWarning, match="horizon=40 steps have been taken") as warned:
        train(model, shorter, 5, start=50)
    assert len(warned) == 1


def test_the_finish_goes_on_from_the_average_at_seven_tenths_of_the_rate() -> None:
    """Of 40 steps the last 16: 0.7 x 15/16, 14/16, ..., and from there on the parameters are what is to be read.

    After four early steps parameters and average are those of the beginning again, and over the next four the rate warms up.
    """
    model = network(dtype=torch.float64)
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, horizon=40, average=True)
    applied = []
    opt.optimizer.register_step_pre_hook(lambda o, *_: applied.append(o.param_groups[0]["lr"]))
    first = average = weights(model)
    for step in range(25):
        began = weights(model)
        train(model, opt, 1, start=step)
        # The first step is taken at 1 and shortened.
        lr = applied[-1] if step else opt.history[0].lr[0]
        came_to = [w - lr * p.grad for w, p in zip(began, model.parameters(), strict=True)]
        if step == 3:
            came_to = average = first
        else:
            taken = step + 1 if step < 3 else step - 3
            average = [a + 5 / (taken + 5) * (w - a) for a, w in zip(average, came_to, strict=True)]
        expected = came_to if step < 24 else average
        torch.testing.assert_close(weights(model), expected, rtol=1e-9, atol=1e-12)
    assert [lr / opt.history[2].lr[0] for lr in applied[4:9]] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1]
    )
    rate = applied[24]
    assert rate == pytest.approx(opt.history[-1].lr[0])
    for step in range(25, 40):
        began = weights(model)
        train(model, opt, 1, start=step)
        came_to = [w - applied[-1] * p.grad for w, p in zip(began, model.parameters(), strict=True)]
        torch.testing.assert_close(weights(model), came_to, rtol=1e-9, atol=1e-12)
    assert [lr / rate for lr in applied[25:]] == pytest.approx(
        [0.7 * left / 16 for left in range(15, 0, -1)]
    )
    now = weights(model)
    with opt.averaged_parameters():
        torch.testing.assert_close(weights(model), now, rtol=0, atol=0)


def test_after_the_race_the_rate_holds() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, horizon=400)
    train(model, opt, 240)
    events = [record.event for record in opt.history]
    raced = events.index("race")
    assert set(events[:raced]) == {"reading"}
    assert set(events[raced + 1 :]) == {"guard", "settling"}
    # It settles for 60 steps, looking every five.
    end = opt.history[raced].step
    looks = [record.step for record in opt.history if record.event == "settling"]
    assert looks == list(range(end + 5, end + 61, 5))
    held = [record.lr for record in opt.history if record.step >= looks[-1]]
    assert len(held) > 3
    assert {tuple(lr) for lr in held} == {tuple(opt.effective_lrs)}
    readings = [record.step for record in opt.history if record.event == "reading"]
    assert readings == list(range(0, 20, 2))
    # Every 20 steps, of which there are twenty in a horizon; not in early steps and not in the race.
    looks = [record.step for record in opt.history if record.event == "guard"]
    assert looks == list(range(-(-(end + 1) // 20) * 20, 241, 20))


def test_the_phases_of_a_training() -> None:
    plan = DirectionalRule().plan(horizon=10_000, average=True)
    assert (plan.early_steps, plan.finish_begins, plan.finish_from) == (20, 6000, 0.7)
    assert plan.rounds(20, 1) == (200, 600)
    assert plan.rounds(20, 4) == (50, 150)
    assert plan.most_raced(20, 1) == 2500
    assert not any(plan.begins_anew(step) for step in (19, 20, 2000, 4000))
    assert [s for s in range(1, 2001) if plan.is_guarded(s)] == [500, 1000, 1500, 2000]
    assert [Settling(0, 5, 88).turn(s) for s in (5, 75, 80, 85)] == [0, 14, None, None]
    turns = {s: plan.settling(1020).turn(s) for s in range(1000, 10_001)}
    looks = {s: turn for s, turn in turns.items() if turn is not None}
    assert looks == {1020 + 100 * (turn + 1): turn for turn in range(15)}
    assert plan.factor(6000) == 1
    assert plan.factor(8000) == pytest.approx(0.35)
    warm_up = plan.warm_up(20)
    assert [warm_up.factor(20 + s) for s in (0, 500, 999, 1000, 5000)] == pytest.approx(
        [1 / 1001, 501 / 1001, 1000 / 1001, 1, 1]
    )
    assert plan.factor(10**9) == plan.factor(9999) == pytest.approx(0.7 / 4000)
    alone = DirectionalRule().plan(horizon=10_000, average=False)
    assert (alone.finish_begins, alone.finish_from) == (5000, 1.0)
    for_ever = DirectionalRule().plan(horizon=None, average=True)
    assert (for_ever.early_steps, for_ever.finish_begins) == (20, math.inf)
    assert for_ever.rounds(20, 1) == for_ever.rounds(2000, 1) == (40, 120)
    assert for_ever.rounds(8000, 1) == (160, 480)
    assert [s for s in range(1, 20_000) if for_ever.begins_anew(s)] == [2000, 4000, 8000, 16_000]
    assert [s for s in range(8001, 16_001) if for_ever.settling(8000).turn(s) == 14] == [9200]
    assert for_ever.factor(10**6) == 1
    shortest = DirectionalRule().plan(horizon=167, average=True)
    assert shortest.rounds(16, 1) == (3, 10)
    assert DirectionalRule().plan(horizon=166, average=True).rounds(16, 1) is None
    assert [DirectionalRule().plan(horizon=h, average=True).early_steps for h in (1, 30, 199)] == [
        1,
        3,
        19,
    ]


def test_a_loaders_data_are_gone_through_whole_each_round_in_another_order() -> None:
    numbers = TensorDataset(torch.arange(12), torch.arange(12))
    probes = ProbeBatches(DataLoader(numbers, batch_size=5), seed=1)
    rounds = [torch.cat([probes.draw(CPU)[0] for _ in range(2)]) for _ in range(4)]
    for drawn in rounds:
        assert len(set(drawn.tolist())) == 10  # the last, shorter batch is left out
    assert len({tuple(drawn.tolist()) for drawn in rounds}) == 4
    again = ProbeBatches(DataLoader(numbers, batch_size=5, shuffle=True), seed=1)
    assert torch.equal(again.draw(CPU)[0], rounds[0][:5])
    assert not torch.equal(
        ProbeBatches(DataLoader(numbers, batch_size=5), seed=2).draw(CPU)[0], rounds[0][:5]
    )


def test_data_sets_with_examples_of_their_own_kind() -> None:
    class Named(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 8

        def __getitem__(self, i: int) -> Any:
            return {"x": torch.full((2,), float(i))}, i

    inputs, targets = ProbeBatches(DataLoader(Named(), batch_size=4), seed=0).draw(CPU)
    assert torch.equal(inputs["x"][:, 0], targets.to(torch.float32))

    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(zip(*data().tensors, strict=True))

    x, y = ProbeBatches(DataLoader(Stream(), batch_size=4), seed=0).draw(CPU)
    assert x.shape == (4, 4)
    assert y.shape == (4,)


LOADERS: dict[str, dict[str, Any]] = {
    "distributed, with workers that stay": {
        "sampler": DistributedSampler(data(), 1, 0), "num_workers": 1, "persistent_workers": True,
    },
    "weighted, with workers that stay": {
        "sampler": WeightedRandomSampler([1.0] * 96, 96), "num_workers": 1, "persistent_workers": True,
    },
    "weighted": {
        "sampler": WeightedRandomSampler([1.0] * 96, 96, generator=torch.Generator().manual_seed(1))
    },
    "a part": {"sampler": SubsetRandomSampler(range(64), generator=torch.Generator().manual_seed(1))},
    "batches of its own": {
        "batch_sampler": BatchSampler(
            SubsetRandomSampler(range(64), generator=torch.Generator().manual_seed(1)), 16, drop_last=False
        )
    },
}  # fmt: skip


@pytest.mark.parametrize("name", LOADERS)
def test_the_training_loop_sees_the_batches_that_it_would_see_without_a_probe(name: str) -> None:
    """Three epochs, to the end of each: iterating over the loader itself ended them too late."""

    def seen(has_probe: bool) -> list[list[float]]:
        options = copy.deepcopy(LOADERS[name])
        if "batch_sampler" not in options:
            options["batch_size"] = 16
        loader: DataLoader[Any] = DataLoader(data(), **options)
        model = network()
        base = torch.optim.AdamW(model.parameters())
        opt: Any = directional(base, model, probe=loader, horizon=40) if has_probe else base
        torch.manual_seed(5)
        epochs = []
        for _ in range(3):
            epochs.append([])
            for x, y in loader:
                epochs[-1].append(x[0, 0].item())
                assert len(epochs[-1]) < 20
                opt.zero_grad()
                nn.functional.cross_entropy(model(x), y).backward()
                opt.step()
        return epochs

    assert seen(True) == seen(False)


def test_a_sampler_that_cannot_be_copied_is_named() -> None:
    class Held(SubsetRandomSampler):
        def __deepcopy__(self, memo: Any) -> Any:
            raise RuntimeError("held")

    loader = DataLoader(data(), batch_size=16, sampler=Held(range(64)))
    with pytest.raises(
        TypeError, match=r"probe must have a sampler that copy\.deepcopy can copy, got .*Held"
    ):
        ProbeBatches(loader, 0)


def test_an_iterable_begins_again_at_its_end() -> None:
    class Two:
        def __iter__(self) -> Any:
            return iter([(0, 0), (1, 1)])

    probes = ProbeBatches(Two(), seed=0)
    assert [probes.draw(CPU)[0] for _ in range(5)] == [0, 1, 0, 1, 0]
    probes.go_to(3, seed=0)
    assert probes.draw(CPU)[0] == 1


def test_an_iterable_without_a_batch_is_refused() -> None:
    class Empty:
        def __iter__(self) -> Any:
            return iter(())

    with pytest.raises(ValueError, match=r"probe must be .* got one with no batch"):
        ProbeBatches(Empty(), seed=0).draw(CPU)


def test_records_and_callback() -> None:
    model = network()
    seen: list[DirectionalRecord] = []
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, on_update=seen.append)
    train(model, opt, 9)
    assert seen == opt.history
    assert [record.step for record in seen] == [0, 2, 4, 6, 8]
    assert {record.event for record in seen} == {"reading"}
    last = seen[-1]
    measured = seen[-2].lr[0]
    assert last.ratio[0] == pytest.approx(measured * last.curvature[0] / last.slope[0])
    assert opt.effective_lrs == last.lr
    assert opt.param_groups[0]["lr_scale"] == pytest.approx(
        seen[-2].lr[0] / 0.1
    )  # what step 8 was taken with
    assert opt.skipped_readings == 0
    assert last.candidates == []
    assert "directional" in repr(opt).lower()


def test_every_probe_sees_the_same_network_whatever_the_mode() -> None:
    """In inference mode too, in which nothing can be differentiated."""
    trained = []
    for mode in (nullcontext, torch.no_grad, torch.inference_mode):
        model = network()
        opt = directional(torch.optim.Adam(model.parameters()), model)
        for step in range(4):
            x, y = batch(step)
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            with mode():
                opt.step()
        assert len(opt.history) == 2
        trained.append(weights(model))
    assert_same(trained[1], trained[0])
    assert_same(trained[2], trained[0])


def test_after_ninety_six_steps_every_eighth_iterate_counts_for_eight() -> None:
    """The weights still add up to one, and a line of iterates has nearly the mean that all of them have."""
    p = torch.zeros(1, dtype=torch.float64)
    average, all_of_them = IterateAverage([p]), 0.0
    by_hand = 0.0
    for t in range(1, 201):
        p.fill_(float(t))
        average.take()
        all_of_them += 5 / (t + 5) * (t - all_of_them)
        if t <= 96:
            by_hand = all_of_them
        elif t % 8 == 0:
            stays = math.prod(i / (i + 5) for i in range(t - 7, t + 1))
            by_hand = stays * by_hand + (1 - stays) * t
        assert average.values[0].item() == pytest.approx(by_hand, rel=1e-12)
    assert all_of_them < by_hand < all_of_them + 3.6  # newer by half of seven steps
    p.fill_(1.0)
    average.values[0].fill_(1.0)
    for _ in range(50):
        average.take()
    assert average.values[0].item() == pytest.approx(1.0, rel=1e-12)

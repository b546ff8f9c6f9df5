"""Ways of training that went wrong once: for the prototypes or for a reader of the rule."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset

from metacurv import DirectionalRule, directional_curvature
from metacurv.optim.directional.probe_batches import ProbeBatches
from tests.helpers import assert_same
from tests.optim.directional.directional_training import (
    batch,
    data,
    directional,
    network,
    train,
    training_loss,
)
from tests.optim.drop_in.reciprocal_training import weights

CPU = torch.device("cpu")


def test_a_tiny_lr_of_the_user_costs_the_direction_no_digits() -> None:
    """A step of 1e-6 as a difference of float32 parameters is off by percents; the first step is taken for a rate of 1."""
    model = network()
    exact = network(dtype=torch.float64)
    x, y = data().tensors
    opt = directional(
        torch.optim.SGD(model.parameters(), lr=1e-6), model, probe=lambda: data().tensors
    )
    nn.functional.cross_entropy(model(x), y).backward()
    opt.step()
    loss = nn.functional.cross_entropy(exact(x.double()), y)
    u = torch.autograd.grad(loss, list(exact.parameters()))
    curvature = directional_curvature(
        exact, nn.functional.cross_entropy, x.double(), y, list(u), method="forward_mode"
    )
    (record,) = opt.history
    assert record.slope[0] == pytest.approx(sum(g.square().sum() for g in u).item(), rel=1e-4)
    assert record.curvature[0] == pytest.approx(curvature, rel=1e-4)


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_difference_step_follows_the_size_of_the_parameters(
    size: float, dtype: torch.dtype
) -> None:
    """Output sin(w / size): J u = cos(w / size) u / size, by hand. A step of 1e-3 would go round the circle, or nowhere."""

    class Wave(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor([0.3, 1.0, -0.7], dtype=dtype) * size)

        def forward(self, _: torch.Tensor) -> torch.Tensor:
            return (self.w / size).sin()

    model = Wave()
    zeros = torch.zeros(3, dtype=dtype)
    opt = directional(
        torch.optim.SGD(model.parameters(), lr=1.0),
        model,
        loss_fn=lambda z, target: 0.5 * (z - target).square().sum(),
        probe=lambda: (zeros, zeros),
    )
    angle = model.w.detach().double() / size
    (0.5 * model(zeros).square().sum()).backward()
    opt.step()
    # u is sin cos / size, by the loss's derivative in w, and J u is cos u / size.
    along = angle.cos().square() * angle.sin() / size**2
    (record,) = opt.history
    rel = 1e-3 if dtype == torch.float32 else 1e-6
    assert record.slope[0] == pytest.approx((angle.sin() * along).sum().item(), rel=rel)
    assert record.curvature[0] == pytest.approx(along.square().sum().item(), rel=rel)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_loss_in_tiny_units_trains_as_in_any_others(momentum: float) -> None:
    """Of SGD's step for a rate of 1, rounding the parameters then leaves nothing."""
    found = []
    for unit in (1.0, 2.0**-40):
        model = network()

        def loss_fn(output: torch.Tensor, y: torch.Tensor, unit: float = unit) -> torch.Tensor:
            return unit * nn.functional.cross_entropy(output, y)

        opt = directional(
            torch.optim.SGD(model.parameters(), lr=1.0, momentum=momentum), model, loss_fn=loss_fn
        )
        for step in range(30):
            x, y = batch(step)
            opt.zero_grad()
            loss_fn(model(x), y).backward()
            opt.step()
        found.append((training_loss(model), opt.effective_lrs[0] * unit))
    assert found[1] == pytest.approx(found[0], rel=1e-2)


def test_a_first_gradient_of_zeros_finds_no_rate_and_waits() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model)
    before = weights(model)
    x, y = batch(0)
    (nn.functional.cross_entropy(model(x), y) * 0).backward()
    opt.step()
    assert_same(weights(model), before)
    assert opt.history == []
    train(model, opt, 30)
    assert training_loss(model) < 1
    assert opt.effective_lrs[0] < 10


def test_a_group_at_zero_does_not_stop_the_readings() -> None:
    model = network()
    groups = [
        {"params": list(model[0].parameters()), "lr": 0.0},
        {"params": list(model[3].parameters())},
    ]
    opt = directional(torch.optim.Adam(groups, lr=1e-3), model)
    frozen = weights(model[0])
    train(model, opt, 30)
    assert [record.event for record in opt.history] == ["reading"] * 10
    assert_same(weights(model[0]), frozen)


def test_a_sampler_that_chooses_is_asked_for_its_choice() -> None:
    numbers = TensorDataset(torch.arange(40), torch.arange(40))
    loader = DataLoader(numbers, batch_size=4, sampler=SubsetRandomSampler(range(8)))
    probes = ProbeBatches(loader, seed=0)
    drawn = torch.cat([probes.draw(CPU)[0] for _ in range(10)])
    assert set(drawn.tolist()) == set(range(8))


def test_a_loader_of_ready_batches() -> None:
    ready = [(torch.ones(3), torch.zeros(3)), (torch.ones(3), torch.zeros(3))]
    inputs, _ = ProbeBatches(DataLoader(ready, batch_size=None), seed=0).draw(CPU)
    assert inputs.shape == (3,)


def test_a_function_that_draws_gives_another_batch_each_time_and_the_same_when_resumed() -> None:
    def probe() -> Any:
        return torch.randint(1000, (8,)), torch.zeros(8)

    probes = ProbeBatches(probe, seed=0)
    drawn = [probes.draw(CPU)[0] for _ in range(6)]
    assert len({tuple(one.tolist()) for one in drawn}) == 6
    again = ProbeBatches(probe, seed=0)
    again.go_to(4, seed=0)
    assert torch.equal(again.draw(CPU)[0], drawn[4])


def test_an_iterable_that_shuffles_resumes() -> None:
    class Shuffled:
        def __iter__(self) -> Any:
            return iter([(i, i) for i in torch.randperm(10).tolist()])

    probes = ProbeBatches(Shuffled(), seed=0)
    drawn = [probes.draw(CPU)[0] for _ in range(25)]
    again = ProbeBatches(Shuffled(), seed=0)
    again.go_to(13, seed=0)
    assert [again.draw(CPU)[0] for _ in range(12)] == drawn[13:]


def test_one_cycle_multiplies_by_at_most_one() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters(), lr=1e-6), model)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(opt, max_lr=1e-2, total_steps=40)
    for step in range(39):
        train(model, opt, 1, start=step)
        scheduler.step()
        assert opt.effective_lrs[0] <= opt.history[-1].lr[0] * (1 + 1e-9)
    assert training_loss(model) < 1


def test_a_schedule_that_begins_at_zero_begins_at_zero() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model)
    torch.optim.lr_scheduler.LambdaLR(opt, lambda step: step / 10)
    before = weights(model)
    train(model, opt, 1)
    for ours, kept in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(ours.detach(), kept, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(6))
def test_where_a_schedule_begins_has_no_effect_on_the_first_rate(seed: int) -> None:
    """From a point that has hardly moved, rounding decided whether the loss had risen, and halved the rate forty times."""
    found = []
    for schedule in (None, lambda step: min(1.0, step / 20), lambda step: max(1e-8, step / 20)):
        model = network()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(0.3 * torch.randn(p.shape, generator=generator))
        opt = directional(torch.optim.AdamW(model.parameters()), model, seed=seed)
        if schedule is not None:
            torch.optim.lr_scheduler.LambdaLR(opt, schedule)
        train(model, opt, 1)
        found.append(opt.history[0].lr[0])
    assert found[1] == found[2] == found[0]


@pytest.mark.parametrize("unit", [1.0, 1e-4, 0.0])
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_begins_and_waits(dtype: torch.dtype, foreach: bool, unit: float) -> None:
    """Gradients of zeros find no rate, also where weight decay moves the parameters; tiny ones take a long first step."""
    model = network(dtype=dtype)
    opt = directional(
        torch.optim.SGD(model.parameters(), lr=1.0, foreach=foreach), model,
        loss_fn=lambda z, y: unit * nn.functional.cross_entropy(z, y),
    )  # fmt: skip
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, unit * 0.01)
    if unit:
        with contextlib.suppress(ValueError):  # this direction may be no descent
            opt.step()
        return
    opt.step()
    assert_same(weights(model), before)
    assert opt.history == []
    decayed = network(dtype=torch.bfloat16)
    opt = directional(
        torch.optim.AdamW(decayed.parameters(), weight_decay=0.1, foreach=foreach), decayed
    )
    before = weights(decayed)
    for p in decayed.parameters():
        p.grad = torch.zeros_like(p)
    opt.step()
    assert_same(weights(decayed), before)
    assert opt.history == []


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5])
def test_a_group_added_per_group_at_any_step(steps: int) -> None:
    model = network()
    opt = directional(
        torch.optim.SGD(model[0].parameters(), lr=1e-3), model, rule=DirectionalRule(per_group=True)
    )
    train(model, opt, steps)
    opt.add_param_group({"params": list(model[3].parameters()), "lr": 1e-1})
    assert len(opt.effective_lrs) == 2
    train(model, opt, 6, start=steps)
    assert all(math.isfinite(lr) and lr > 0 for lr in opt.effective_lrs)


def test_a_group_without_gradient_does_not_lengthen_the_first_step() -> None:
    """No length would make a step of it."""
    model = network()
    groups = [{"params": list(model[0].parameters())}, {"params": list(model[3].parameters())}]
    base = torch.optim.SGD(groups, lr=0.1)
    opt = directional(base, model, rule=DirectionalRule(per_group=True))
    steps = []
    base.register_step_pre_hook(lambda *_: steps.append(1))
    x, y = batch(0)
    nn.functional.cross_entropy(model(x), y).backward()
    for p in model[0].parameters():
        p.grad.zero_()
    opt.step()
    assert len(steps) == 1
    assert len(opt.history) == 1


def test_a_group_added_with_a_larger_lr_leaves_the_others_rates() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model[0].parameters(), lr=1e-3), model)
    train(model, opt, 3)
    before = opt.effective_lrs[0]
    opt.add_param_group({"params": list(model[3].parameters()), "lr": 1e-1})
    assert opt.effective_lrs == pytest.approx([before, 100 * before])


def test_masked_logits() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cat([self.inner(x), torch.full((len(x), 1), -math.inf)], 1)

    model, plain = Masked(), network()
    records = []
    for each, core in ((model, model.inner), (plain, plain)):
        opt = directional(torch.optim.SGD(core.parameters(), lr=0.1), each)
        train(core, opt, 3)
        records.append(opt.history)
    assert records[0][-1].slope == pytest.approx(records[1][-1].slope, rel=1e-4)


def test_radam_begins_anew_while_its_steps_are_not_normalised() -> None:
    model = network()
    opt = directional(torch.optim.RAdam(model.parameters()), model)
    before = training_loss(model)
    for step in range(20):
        x, y = batch(step)
        opt.zero_grad()
        (1e-3 * nn.functional.cross_entropy(model(x), y)).backward()
        opt.step()
    assert training_loss(model) < 2 * before


def test_a_criterion_with_state_and_randomness() -> None:
    class Criterion(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(
                self.norm(output) + 1e-3 * torch.randn_like(output), target
            )

    model, criterion = network(), Criterion()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, loss_fn=criterion)
    x, y = batch(0)
    criterion(model(x), y).backward()
    state = torch.get_rng_state()
    opt.step()
    assert torch.equal(torch.get_rng_state(), state)
    assert criterion.norm.num_batches_tracked == 1
    assert criterion.norm.training


def test_what_cannot_be_is_refused() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"optimizer must minimise .* got maximize=True"):
        directional(torch.optim.SGD(model.parameters(), lr=0.1, maximize=True), model)
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, average=True)
    train(model, opt, 3)
    with opt.averaged_parameters(), pytest.raises(RuntimeError, match="must not be called inside"):
        train(model, opt, 1)
    train(model, opt, 1)


def test_the_average_of_half_precision_moves() -> None:
    from metacurv.optim.directional.iterate_average import IterateAverage

    p = torch.ones(1, dtype=torch.bfloat16)
    average = IterateAverage([p])
    for step in range(4000):
        p.fill_(1 + step / 4000)
        average.take()
    assert average.values[0].item() == pytest.approx(1 + 5 / 6, abs=0.01)


def test_a_model_converted_after_wrapping() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model, average=True)
    model.double()
    opt._control._probes = ProbeBatches([batch(i, torch.float64) for i in range(3)], seed=0)
    train(model, opt, 5)
    with opt.averaged_parameters():
        assert math.isfinite(training_loss(model))

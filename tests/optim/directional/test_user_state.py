"""What belongs to the user stays as it was: gradients, modes, buffers, random states, and parameters when something fails."""

from __future__ import annotations

import copy
import math
import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import assert_same, own
from tests.optim.directional.directional_training import (
    batch,
    data,
    directional,
    loader,
    network,
    train,
    training_loss,
)
from tests.optim.drop_in.reciprocal_training import weights


def states():
    return torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("average", [False, True])
def test_nothing_but_the_parameters_moves(average: bool) -> None:
    model = network(dropout=0.5, norm=True)
    model[3].eval()  # the user's own choice for one layer
    opt = directional(torch.optim.Adam(model.parameters()), model, average=average)
    x, y = batch(0)
    for _ in range(4):  # steps 0 and 2 are measured
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        before = states()
        gradients = [p.grad.clone() for p in model.parameters()]
        kept = [p.grad for p in model.parameters()]
        buffers = [b.clone() for b in model.buffers()]
        modes = [m.training for m in model.modules()]
        opt.step()
        after = states()
        assert torch.equal(before[0], after[0])
        assert before[1:] == after[1:]
        assert all(p.grad is g for p, g in zip(model.parameters(), kept, strict=True))
        assert all(
            torch.equal(p.grad, g) for p, g in zip(model.parameters(), gradients, strict=True)
        )
        assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
        assert modes == [m.training for m in model.modules()]
        assert all(p.requires_grad and p.is_leaf for p in model.parameters())
    assert len(opt.history) == 2


def test_dropout_is_off_and_batch_norm_frozen_while_measuring() -> None:
    """Readings with dropout equal those of the same model without it, on the same weights."""
    records = []
    for dropout in (0.0, 0.9):
        model = network(dropout=dropout, norm=True)
        model.eval()
        x, y = batch(0)
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        model.train()
        opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model)
        opt.step()
        records.append(opt.history[0])
    assert_same(records[0], records[1])


def test_a_data_set_that_draws_random_numbers_does_not_move_the_loops() -> None:
    class Augmented(torch.utils.data.Dataset):
        def __len__(self):
            return 96

        def __getitem__(self, index):
            noise = torch.randn(4) + random.random() + float(np.random.rand())  # noqa: NPY002
            return data()[index][0] + 1e-3 * noise, data()[index][1]

    model = network()
    probe = torch.utils.data.DataLoader(Augmented(), batch_size=8)
    opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model, probe=probe)
    x, y = batch(0)
    nn.functional.cross_entropy(model(x), y).backward()
    before = states()
    opt.step()
    after = states()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]


def test_frozen_parameters_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    frozen = [p.clone() for p in model[0].parameters()]
    opt = directional(torch.optim.AdamW(model.parameters(), weight_decay=0.1), model)
    train(model, opt, 5)
    assert all(torch.equal(a, b) for a, b in zip(frozen, model[0].parameters(), strict=True))
    assert len(opt.history) == 3


class Broken(Exception):
    pass


@pytest.mark.parametrize("due", [0, 2])
def test_a_probe_that_raises_changes_nothing(due: int) -> None:
    calls = []

    def probe():
        if len(calls) == fails_at:
            raise Broken
        calls.append(1)
        return data().tensors

    fails_at = 10**9
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, probe=probe)
    train(model, opt, due)
    fails_at = len(calls)
    before = [p.clone() for p in model.parameters()]
    state = copy.deepcopy(opt.state_dict())
    x, y = batch(due)
    opt.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    with pytest.raises(Broken):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert_same(own(opt.state_dict()), own(state))
    fails_at = 10**9
    opt.step()  # and the loop can go on
    assert opt.history[-1].step == due


@pytest.mark.parametrize("where", ["model", "loss"])
def test_a_model_or_loss_that_raises_leaves_whole_parameters(where: str) -> None:
    """On the first step the parameters go back to before it, later to where the base's step came."""
    fails = False

    class Sometimes(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network()

        def forward(self, x):
            if fails and where == "model" and not self.training:
                raise Broken
            return self.inner(x)

    def loss_fn(output, target):
        if fails and where == "loss":
            raise Broken
        return nn.functional.cross_entropy(output, target)

    model = Sometimes()
    opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model, loss_fn=loss_fn)
    before = [p.detach().clone() for p in model.parameters()]
    fails = True
    with pytest.raises(Broken):
        train(model, opt, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    fails = False
    train(model, opt, 2)
    before = [p.detach().clone() for p in model.parameters()]
    fails = True
    with pytest.raises(Broken):
        train(model, opt, 1, start=2)
    lr = opt.effective_lrs[0]
    for p, b in zip(model.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), b - lr * p.grad)
    assert all(m.training for m in model.modules())


BASES = {
    "sgd": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "adam": lambda params: torch.optim.Adam(params, amsgrad=True),
    "adafactor": torch.optim.Adafactor,
    "radam": torch.optim.RAdam,
}


@pytest.mark.parametrize(("name", "at"), [*((name, 0) for name in BASES), ("radam", 3)])
def test_a_first_step_that_fails_leaves_the_base_as_it_was(name: str, at: int) -> None:
    """Then the loop goes on as if it had not been. RAdam's fourth step is a first one, too, with a state to keep."""

    def trained(*, fails: bool) -> list[torch.Tensor]:
        broken = False

        def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
            if broken:
                raise Broken
            return nn.functional.cross_entropy(output, target)

        model = network()
        opt = directional(
            BASES[name](model.parameters()), model, loss_fn=loss_fn, probe=lambda: data().tensors
        )
        train(model, opt, at)
        if fails:
            broken = True
            before = copy.deepcopy(opt.optimizer.state_dict())
            x, y = batch(99)
            opt.zero_grad()
            nn.functional.cross_entropy(model(x), y).backward()
            with pytest.raises(Broken):
                opt.step()
            assert_same(opt.optimizer.state_dict(), before)
            assert own(opt.state_dict())["steps"] == at
            broken = False
        train(model, opt, 12, start=at)
        return weights(model)

    assert_same(trained(fails=True), trained(fails=False))


def test_a_step_whose_reading_fails_counts() -> None:
    fails = False

    def loss_fn(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        if fails:
            raise Broken
        return nn.functional.cross_entropy(output, target)

    model = network()
    opt = directional(
        torch.optim.Adam(model.parameters()), model, loss_fn=loss_fn, average=True, horizon=100
    )
    average = weights(model)
    for step in range(5):
        fails = step == 2  # a due one
        with pytest.raises(Broken) if fails else nullcontext():
            train(model, opt, 1, start=step)
        now = weights(model)
        average = [a + 5 / (step + 6) * (w - a) for a, w in zip(average, now, strict=True)]
    assert own(opt.state_dict())["steps"] == 5
    assert opt.optimizer.state[model[0].weight]["step"] == 5
    assert [record.step for record in opt.history if record.event == "reading"] == [0, 4]
    with opt.averaged_parameters():
        torch.testing.assert_close(weights(model), average)


def test_a_loss_without_a_second_derivative_is_refused_before_anything_changes() -> None:
    from metacurv import NotTwiceDifferentiableError

    def ctc(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        log_p = output.log_softmax(1)[
            :, None
        ]  # one sequence, of as many steps as the batch has rows
        return nn.functional.ctc_loss(
            log_p, torch.tensor([[1, 2]]), torch.tensor([len(log_p)]), torch.tensor([2])
        )

    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model, loss_fn=ctc)
    before = weights(model)
    with pytest.raises(
        NotTwiceDifferentiableError, match="second derivative of loss_fn in the model's output"
    ):
        train(model, opt, 1)
    assert_same(weights(model), before)
    assert not opt.optimizer.state


def test_the_scale_of_a_group_is_nan_until_there_is_a_rate() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters(), lr=0.5), model)
    assert math.isnan(opt.param_groups[0]["lr_scale"])
    train(model, opt, 1)
    assert opt.param_groups[0]["lr_scale"] == pytest.approx(opt.effective_lrs[0] / 0.5)
    again = network()
    resumed = directional(torch.optim.Adam(again.parameters(), lr=0.5), again)
    resumed.load_state_dict(opt.state_dict())
    assert resumed.param_groups[0]["lr_scale"] == opt.param_groups[0]["lr_scale"]


def test_a_first_step_that_blows_up_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loss so steep beyond the curvature seen that the first rate, ten times the quadratic's best, would raise it."""
    from metacurv.optim.directional import early_rate

    monkeypatch.setattr(early_rate, "_START", 1e4)
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model)
    before = training_loss(model)
    train(model, opt, 1)
    assert training_loss(model) < before
    assert opt.effective_lrs[0] < 1e4


def test_loops_that_clip_and_accumulate() -> None:
    """The step is measured as the base takes it, from whatever is in .grad."""
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model)
    for step in range(3):
        opt.zero_grad()
        for part in range(2):
            x, y = batch(2 * step + part)
            (nn.functional.cross_entropy(model(x), y) / 2).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        opt.step()
    for record in opt.history:
        assert record.slope[0] < 0.1  # u is as short as what was clipped
    assert opt.effective_lrs[0] > 1  # and the rate is as much longer


def test_loader_is_not_drawn_from_behind_the_loop() -> None:
    sampler = torch.utils.data.RandomSampler(data(), generator=torch.Generator().manual_seed(1))
    probe = torch.utils.data.DataLoader(data(), batch_size=8, sampler=sampler)
    state = sampler.generator.get_state()
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model, probe=probe)
    train(model, opt, 3)
    assert torch.equal(sampler.generator.get_state(), state)
    assert loader().batch_size == 16


def test_a_model_that_draws_and_counts_in_eval_mode_too() -> None:
    """Both passes of a reading see the same noise, so the slope is not drowned in it; nothing is left behind."""

    class Noisy(nn.Module):
        def __init__(self, noise: float) -> None:
            super().__init__()
            self.inner, self.noise = network(), noise
            self.register_buffer("passes", torch.zeros(()))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.passes += 1
            return self.inner(x + self.noise * torch.randn_like(x))

    slopes = []
    for noise in (0.0, 1e-3):
        model = Noisy(noise)
        opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model)
        x, y = batch(0)
        nn.functional.cross_entropy(model(x), y).backward()
        before = states()[0]
        opt.step()
        assert torch.equal(states()[0], before)
        assert model.passes == 1  # the loop's own
        slopes.append(opt.history[0].slope[0])
    assert slopes[1] == pytest.approx(slopes[0], rel=1e-2)

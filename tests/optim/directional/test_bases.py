"""Every base optimizer, schedule and way of training that the drop-in serves, with the directional rule."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from metacurv import DirectionalRule, MetaCurvatureLR
from tests.helpers import assert_same, own, sampled
from tests.optim.directional.directional_training import (
    batch,
    data,
    directional,
    loader,
    network,
    train,
    training_loss,
)
from tests.optim.drop_in.reciprocal_training import OPTIMIZERS, set_lr, weights

BASES = sorted(set(OPTIMIZERS) - {"Rprop", "ASGD"})
MODES: dict[str, dict[str, Any]] = {
    "horizon": {"horizon": 200},
    "alone": {"average": False, "horizon": 200},
    "short": {"horizon": 60},
    "one": {"race": 0, "horizon": 100},
}


@pytest.mark.parametrize("mode", sampled(MODES, 2))
@pytest.mark.parametrize("name", sampled(BASES, 4))
def test_learns_with_every_base(name: str, mode: str) -> None:
    model = network()
    opt = directional(OPTIMIZERS[name](list(model.parameters())), model, **MODES[mode])
    before = training_loss(model)
    train(model, opt, MODES[mode].get("horizon", 60))
    # Muon has the weights alone; Adadelta's own steps are tiny at first. All come far below chance, log 3 = 1.10.
    assert training_loss(model) < 0.75 * before
    assert all(math.isfinite(lr) and lr > 0 for lr in opt.effective_lrs)
    assert all(record.accepted for record in opt.history)
    assert any(record.event == "race" for record in opt.history) is (mode in ("horizon", "alone"))


@pytest.mark.parametrize("name", sampled(BASES, 4))
def test_the_users_lr_has_no_effect_to_the_last_bit(name: str) -> None:
    """Through early steps, race, hold and finish."""
    trained = []
    for lr in (1e-6, 1e-1):
        model = network()
        base = OPTIMIZERS[name](list(model.parameters()))
        for group in base.param_groups:
            set_lr(group, lr)
        opt = directional(base, model, horizon=170)
        train(model, opt, 170)
        trained.append((weights(model), opt.history))
    assert_same(*trained)


@pytest.mark.parametrize("kind", [torch.optim.Rprop, torch.optim.ASGD])
def test_bases_with_step_lengths_of_their_own_are_refused(kind: Any) -> None:
    model = network()
    with pytest.raises(TypeError, match=f"optimizer must take lr .* got {kind.__name__}"):
        directional(kind(model.parameters()), model)


def test_decoupled_decay_of_every_base_that_has_it() -> None:
    """With and without decay the first direction is the same, since the decay is kept out of it."""
    kinds: list[tuple[Any, dict[str, Any]]] = [
        (torch.optim.AdamW, {}),
        (torch.optim.Adam, {"decoupled_weight_decay": True}),
        (torch.optim.NAdam, {"decoupled_weight_decay": True}),
        (torch.optim.RAdam, {"decoupled_weight_decay": True}),
        (torch.optim.Adafactor, {}),
    ]
    for kind, options in kinds:
        records = []
        for decay in (0.0, 0.1):
            model = network(dtype=torch.float64)
            base = kind(model.parameters(), weight_decay=decay, **options)
            opt = directional(base, model)
            train(model, opt, 1)
            records.append(opt.history[0])
        assert records[0].slope == pytest.approx(records[1].slope, rel=1e-7), kind
        assert records[0].curvature == pytest.approx(records[1].curvature, rel=1e-7), kind


def test_with_a_gradient_scaler_a_skipped_step_counts_for_nothing() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    train(model, opt, 1)
    before, state = weights(model), own(opt.state_dict())
    x, y = batch(1)
    opt.zero_grad()
    scaler.scale(nn.functional.cross_entropy(model(x), y)).backward()
    next(model.parameters()).grad.fill_(math.inf)
    scaler.step(opt)
    scaler.update()
    assert_same(weights(model), before)
    assert_same(own(opt.state_dict()), state)


def test_closure() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model)
    calls = []

    def closure() -> Any:
        x, y = batch(0)
        opt.zero_grad()
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        calls.append(1)
        return loss

    assert opt.step(closure) > 0
    assert calls == [1]
    assert len(opt.history) == 1


def test_structured_inputs_and_outputs() -> None:
    """A model that takes a mapping and returns one, with a loss that reads it; targets may be anything."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, *, x: Any, scale: Any) -> Any:
            logits = self.inner(x)
            return {"logits": logits * scale, "argmax": logits.argmax(1), "name": "net"}

    def loss_fn(output: Any, target: Any) -> Any:
        assert output["name"] == "net"
        return nn.functional.cross_entropy(output["logits"], target["y"])

    x, y = data().tensors
    plain, wrapped = network(), Wrapped()
    records = []
    for model, probe, loss in (
        (plain, [(x, y)], nn.functional.cross_entropy),
        (wrapped, [({"x": x, "scale": 1.0}, {"y": y})], loss_fn),
    ):
        opt = directional(
            torch.optim.SGD(model.parameters(), lr=0.1), model, probe=probe, loss_fn=loss
        )
        core = model if model is plain else model.inner
        train(core, opt, 3)
        records.append(opt.history)
    assert_same(records[0], records[1])


def test_parameters_without_gradient_and_steps_without_any() -> None:
    model = network()
    opt = directional(torch.optim.Adam(model.parameters()), model)
    opt.zero_grad()
    opt.step()  # no gradients at all
    assert opt.history == []
    x, y = batch(0)
    nn.functional.cross_entropy(model(x), y).backward()
    model[0].weight.grad = None
    before = model[0].weight.detach().clone()
    opt.step()
    assert torch.equal(before, model[0].weight)
    assert len(opt.history) == 1


def test_a_group_added_later_is_stepped_at_its_ratio() -> None:
    model = network()
    first, last = model[0], model[3]
    opt = directional(torch.optim.SGD(first.parameters(), lr=0.1), model)
    train(model, opt, 3)
    opt.add_param_group({"params": list(last.parameters()), "lr": 0.05})
    train(model, opt, 3, start=3)
    assert opt.effective_lrs[1] == pytest.approx(opt.effective_lrs[0] / 2, rel=1e-12)


def test_compiled_models_are_probed_too() -> None:
    model = network()
    compiled = torch.compile(model, backend="eager")
    plain = network()
    one = directional(torch.optim.SGD(plain.parameters(), lr=0.1), plain)
    two = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1),
        rule=DirectionalRule(),
        model=compiled,
        loss_fn=nn.functional.cross_entropy,
        probe=loader(),
    )
    train(plain, one, 5)
    train(model, two, 5)
    for a, b in zip(one.history, two.history, strict=True):
        assert a.slope == pytest.approx(b.slope, rel=1e-4)
        assert a.curvature == pytest.approx(b.curvature, rel=1e-3)


def test_a_group_added_later_gets_a_rate_of_its_own() -> None:
    model = network()
    first, last = model[0], model[3]
    rule = DirectionalRule(per_group=True)
    opt = directional(torch.optim.SGD(first.parameters(), lr=0.1), model, rule=rule, average=True)
    train(model, opt, 3)
    opt.add_param_group({"params": list(last.parameters()), "lr": 0.05})
    assert opt.effective_lrs[1] == opt.effective_lrs[0]
    train(model, opt, 12, start=3)
    assert opt.effective_lrs[1] != opt.effective_lrs[0]
    with opt.averaged_parameters():  # the new group's too
        assert not torch.equal(
            last.weight, opt._control._training.average._parameters[-2].new_zeros(3, 16)
        )


def test_gradients_that_are_not_finite_at_the_first_step() -> None:
    model = network()
    opt = directional(torch.optim.SGD(model.parameters(), lr=0.1), model)
    before = weights(model)
    for p in model.parameters():
        p.grad = torch.full_like(p, math.nan)
    with pytest.raises(ValueError, match="gradients must be finite at the first step"):
        opt.step()
    assert_same(weights(model), before)
    train(model, opt, 1)
    assert opt.effective_lrs[0] > 0

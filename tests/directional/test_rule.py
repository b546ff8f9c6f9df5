"""The controller against quadratics worked by hand, for which n = g . u, d = u . G u and the edge are known."""

from __future__ import annotations

import math

import pytest
import torch

from metacurv import DirectionalRule, MetaCurvatureLR
from tests.directional.helpers import Point, bowl, descend, directional, network, pairs, train


def on_a_bowl(stiffness, start, base=torch.optim.SGD, rule=None, lr=1.0, targets=None, **options):
    point = Point(*start)
    loss = bowl(stiffness)
    zeros = [0.0] * len(start)
    opt = MetaCurvatureLR(
        base(point.parameters(), lr=lr),
        rule=rule or DirectionalRule(),
        model=point,
        loss_fn=loss,
        probe=pairs(*(targets or [zeros])),
        **options,
    )
    return point, loss, opt, torch.tensor(zeros, dtype=torch.float64)


def test_first_reading_and_first_rate() -> None:
    # h = (4, 1), w = (1, 2): g = (4, 2) = u for SGD; n = 16 + 4 = 20, d = 4*16 + 1*4 = 68; L = (4 + 4) / 2.
    point, loss, opt, target = on_a_bowl((4.0, 1.0), (1.0, 2.0))
    descend(point, opt, loss, target, 1)
    (record,) = opt.history
    assert record.slope[0] == pytest.approx(20, rel=1e-9)
    assert record.curvature[0] == pytest.approx(68, rel=1e-9)
    assert record.probe_loss == pytest.approx(4, rel=1e-9)
    lr = 0.1 * 1.6 * 20 / 68  # the part 0.1 of sigma n / d
    assert record.lr[0] == pytest.approx(lr, rel=1e-9)
    assert record.ratio[0] == pytest.approx(0.16, rel=1e-9)
    torch.testing.assert_close(
        point.w.detach(),
        torch.tensor([1 - lr * 4, 2 - lr * 2], dtype=torch.float64),
        rtol=1e-9,
        atol=0,
    )


def test_momentum_starts_with_a_smaller_part() -> None:
    def sgd(parameters, lr):
        return torch.optim.SGD(parameters, lr=lr, momentum=0.9)

    point, loss, opt, target = on_a_bowl((4.0, 1.0), (1.0, 2.0), base=sgd)
    descend(point, opt, loss, target, 1)
    assert opt.history[0].lr[0] == pytest.approx(0.03 * 1.6 * 20 / 68, rel=1e-9)


@pytest.mark.parametrize("sigma", [1.0, 1.6])
def test_converges_to_sigma_of_the_edge(sigma: float) -> None:
    # In one dimension n / d = h^2 w^2 / (h^3 w^2) = 1 / h wherever w is: lr h goes to sigma, and 2 would be the edge. With one
    # curvature in all directions the same holds in any number of them.
    point, loss, opt, target = on_a_bowl((3.0, 3.0), (1.0, -2.0), rule=DirectionalRule(sigma=sigma))
    bowl_alone, opt._control._model.loss_fn = (
        loss,
        lambda w, t: 1000 + loss(w, t),
    )  # no progress to speak of, to lose
    for _ in range(250):
        with torch.no_grad():
            point.w.copy_(torch.tensor([1.0, -2.0]))  # else rounding is all that is left in the end
        descend(point, opt, bowl_alone, target, 20)
    assert opt.effective_lrs[0] * 3 == pytest.approx(sigma, rel=1e-3)


def test_growth_is_free_until_the_first_brake_and_shrinking_is_clipped() -> None:
    # start = 0.001 of sigma n / d: e = log 1000 = 6.9, clipped to 3: lr grows by exp(0.1 * 3) at the next reading.
    point, loss, opt, target = on_a_bowl((2.0,), (1.0,), rule=DirectionalRule(start=1e-3))
    descend(point, opt, loss, target, 3)
    first, second = opt.history
    assert second.lr[0] / first.lr[0] == pytest.approx(math.exp(0.3), rel=1e-9)
    # start = 1000 times sigma n / d, lr h = 1600, is halved while the loss rises: L (1 - lr h)^2 <= L needs lr h <= 2.
    point, loss, opt, target = on_a_bowl((2.0,), (1.0,), rule=DirectionalRule(start=1e3))
    descend(point, opt, loss, target, 1)
    assert opt.effective_lrs[0] * 2 == pytest.approx(1600 / 2**10, rel=1e-9)  # 1.5625


def test_an_uphill_slope_shrinks_the_rate_by_kappa() -> None:
    # The probe's minimum lies on the other side: from the second reading on its slope along the step is negative.
    point, loss, opt, target = on_a_bowl(
        (1.0,), (1.0,), rule=DirectionalRule(beta=0.0), targets=[(-3.0,)]
    )
    descend(point, opt, loss, target, 1)
    with torch.no_grad():
        point.w.fill_(-40.0)
    before = opt.effective_lrs[0]
    opt._control._model.loss_fn = bowl((-1.0,))  # a loss that the step climbs
    descend(point, opt, loss, target, 2)
    assert opt.history[-1].slope[0] < 0
    assert opt.effective_lrs[0] / before == pytest.approx(math.exp(-0.1), rel=1e-9)


def test_readings_are_those_of_directional_curvature() -> None:
    """On a network, against the gradient and forward-mode differentiation, in float64."""
    import metacurv

    model = network(dtype=torch.float64)
    opt = directional(torch.optim.SGD(model.parameters(), lr=1.0), model, seed=3)
    drawn = []
    fetch = opt._control._probes.draw
    opt._control._probes.draw = lambda device: drawn.append(fetch(device)) or drawn[-1]
    train(model, opt, 2)
    drawn.clear()
    before = [p.detach().clone() for p in model.parameters()]
    train(model, opt, 1, start=2)  # due: the third step
    after = [p.detach().clone() for p in model.parameters()]
    (x, y), record = drawn[0], opt.history[-1]
    assert record.step == 2
    lr = opt.history[-2].lr[0]
    u = [(b - a) / lr for b, a in zip(before, after, strict=True)]
    with torch.no_grad():
        for p, b in zip(model.parameters(), before, strict=True):
            p.copy_(b)
    loss = torch.nn.functional.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    slope = sum((g * d).sum() for g, d in zip(gradients, u, strict=True)).item()
    curvature = metacurv.directional_curvature(
        model, torch.nn.functional.cross_entropy, x, y, u, method="forward_mode"
    )
    assert record.slope[0] == pytest.approx(slope, rel=1e-6)
    assert record.curvature[0] == pytest.approx(curvature, rel=1e-6)
    assert record.probe_loss == pytest.approx(loss.item(), rel=1e-6)


def test_one_scale_keeps_the_ratio_of_groups_and_per_group_finds_each() -> None:
    # Curvatures 2 and 50, gradients apart: each group's own edge is sigma / h.
    def two(rule):
        a, b = Point(1.0), Point(1.0)
        both = torch.nn.ModuleList([a, b])
        both.forward = lambda _: (a.w, b.w)
        base = torch.optim.SGD(
            [{"params": a.parameters(), "lr": 0.2}, {"params": b.parameters(), "lr": 0.05}]
        )

        def loss(output, _):
            return output[0].square().sum() + 25 * output[1].square().sum()

        opt = MetaCurvatureLR(
            base, rule=rule, model=both, loss_fn=loss, probe=[(torch.zeros(1), torch.zeros(1))]
        )
        for _ in range(250):
            with torch.no_grad():
                a.w.fill_(1.0)
                b.w.fill_(1.0)
            for _ in range(20):
                opt.zero_grad()
                loss(both(None), None).backward()
                opt.step()
        return opt

    shared = two(DirectionalRule()).effective_lrs
    assert shared[0] / shared[1] == pytest.approx(4, rel=1e-12)
    each = two(DirectionalRule(per_group=True, sigma=1.0)).effective_lrs
    assert each[0] * 2 == pytest.approx(1, rel=2e-2)
    assert each[1] * 50 == pytest.approx(1, rel=2e-2)


def test_every_scale_is_read_where_the_others_have_not_moved() -> None:
    """z = b exp(1000 (a - 1)) at a = b = 1, loss z^2 / 2: u = (1000, 1), J u = (10^6, 1), the output's Hessian 1."""
    a, b = Point(1.0), Point(1.0)
    both = torch.nn.ModuleList([a, b])
    both.forward = lambda _: b.w * (1000 * (a.w - 1)).exp()

    def loss(z, _):
        return 0.5 * z.square().sum()

    opt = MetaCurvatureLR(
        torch.optim.SGD([{"params": a.parameters()}, {"params": b.parameters()}], lr=1.0),
        rule=DirectionalRule(per_group=True),
        model=both,
        loss_fn=loss,
        probe=[(torch.zeros(1), torch.zeros(1))],
    )
    loss(both(None), None).backward()
    opt.step()
    (record,) = opt.history
    assert record.slope == pytest.approx([1e6, 1.0], rel=1e-5)
    # Along both steps together, which are taken together: J u . (J u_a + J u_b).
    assert record.curvature == pytest.approx([1e6 * (1e6 + 1), 1e6 + 1], rel=1e-5)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_decoupled_weight_decay_is_no_part_of_the_direction(decay: float) -> None:
    # AdamW's first step for lr 1 is w - decay w - sign(g): u = (1, 1), n = 4 + 2, d = 4 + 1.
    def adamw(parameters, lr):
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=decay, eps=1e-300)

    point, loss, opt, target = on_a_bowl((4.0, 1.0), (1.0, 2.0), base=adamw)
    descend(point, opt, loss, target, 1)
    (record,) = opt.history
    assert record.slope[0] == pytest.approx(6, rel=1e-9)
    assert record.curvature[0] == pytest.approx(5, rel=1e-9)
    lr = record.lr[0]
    expected = torch.tensor([1 - lr * decay - lr, 2 - lr * decay * 2 - lr], dtype=torch.float64)
    torch.testing.assert_close(point.w.detach(), expected, rtol=1e-9, atol=0)


def test_a_schedule_of_a_tensor_lr_does_too() -> None:
    """Its number changes in place: nothing that is remembered may go by the tensor alone."""
    model = network()
    base = torch.optim.Adam(model.parameters(), lr=torch.tensor(0.1), foreach=False)
    opt = directional(base, model)
    scheduler = torch.optim.lr_scheduler.LambdaLR(opt, lambda step: 0.5**step)
    applied = []
    base.register_step_pre_hook(lambda o, *_: applied.append(float(o.param_groups[0]["lr"])))
    for step in range(6):
        train(model, opt, 1, start=step)
        found = opt.history[-1].lr[0]
        scheduler.step()
        assert opt.effective_lrs[0] == pytest.approx(found * 0.5 ** (step + 1), rel=1e-6)
        assert opt.param_groups[0]["lr_scale"] == pytest.approx(
            (applied[-1] if step else opt.history[0].lr[0]) / (0.1 * 0.5**step), rel=1e-6
        )
    assert applied[4] == pytest.approx(opt.history[-2].lr[0] * 0.5**4, rel=1e-6)
    assert applied[5] == pytest.approx(opt.history[-1].lr[0] * 0.5**5, rel=1e-6)


def test_a_schedule_multiplies_what_the_rule_finds() -> None:
    point, loss, opt, target = on_a_bowl((4.0, 1.0), (1.0, 2.0), lr=0.3)
    scheduler = torch.optim.lr_scheduler.StepLR(opt, step_size=1, gamma=0.5)
    descend(point, opt, loss, target, 1)
    found = opt.effective_lrs[0]
    scheduler.step()
    assert opt.effective_lrs[0] == pytest.approx(found / 2, rel=1e-12)
    assert opt.param_groups[0]["lr"] == 0.15
    before = point.w.detach().clone()
    descend(point, opt, loss, target, 1)
    step = before - point.w.detach()
    torch.testing.assert_close(
        step, found / 2 * torch.tensor([4.0, 1.0], dtype=torch.float64) * before, rtol=1e-9, atol=0
    )

"""The controller against quadratics worked by hand, for which n = g . u, d = u . G u and the edge are known."""

from __future__ import annotations

import math

import pytest
import torch

from metacurv import DirectionalRule, MetaCurvatureLR
from metacurv.optim.directional.early_rate import EarlyRate
from tests.optim.directional.directional_training import (
    Point,
    bowl,
    descend,
    directional,
    network,
    pairs,
    train,
)


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
    lr = 0.1 * 2.5 * 20 / 68  # the part 0.1 of sigma n / d
    assert record.lr[0] == pytest.approx(lr, rel=1e-9)
    assert record.ratio[0] == pytest.approx(0.25, rel=1e-9)
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
    assert opt.history[0].lr[0] == pytest.approx(0.03 * 2.0 * 20 / 68, rel=1e-9)


@pytest.mark.parametrize(("momentum", "sigma"), [(False, 2.5), (True, 2.0)])
def test_converges_to_sigma_of_the_edge(momentum: bool, sigma: float) -> None:
    """In one dimension n / d = h^2 w^2 / (h^3 w^2) = 1 / h wherever w is: lr h goes to sigma, and 2 would be the edge."""
    early = EarlyRate(1, momentum)
    early.begin([9.0], [27.0])
    for _ in range(2000):
        assert early.take([9.0], [27.0])
    assert early.lr[0] * 3 == pytest.approx(sigma, rel=1e-3)


def test_growth_is_free_until_the_first_brake_and_shrinking_is_clipped() -> None:
    # A first rate 0.001 of sigma n / d: log 1000 = 6.9, clipped to 3: lr grows by exp(0.1 * 3).
    early = EarlyRate(1, False)
    early.begin([1.0], [1.0])
    early.lr = [2.5e-3]
    early.take([1.0], [1.0])
    assert early.lr[0] / 2.5e-3 == pytest.approx(math.exp(0.3), rel=1e-12)
    # At the rate sought nothing moves; ten times too large: clipped to 1. Braked growth is at most 0.5.
    early.lr = [2.5]
    early.take([1.0], [1.0])
    assert early.lr[0] == pytest.approx(2.5, rel=1e-12)
    early.lr = [25.0]
    early.take([1.0], [1.0])
    assert early.lr[0] / 25 == pytest.approx(math.exp(-0.1), rel=1e-12)
    early.lr = [2.5e-3]
    early.take([1.0], [1.0])
    assert early.lr[0] / 2.5e-3 == pytest.approx(math.exp(0.05), rel=1e-12)


def test_an_uphill_slope_shrinks_the_rate_by_kappa() -> None:
    early = EarlyRate(1, False)
    early.begin([1.0], [1.0])
    early.take([-3.0], [1.0])
    assert early.lr[0] == pytest.approx(0.25 * math.exp(-0.1), rel=1e-12)


def test_the_averages_of_slope_and_curvature_by_hand() -> None:
    """k = 0: they are a tenth old; k = 1: two elevenths. Rate 0.5: log(2.5 * 9 / (0.5 * 7.2)), a tenth of it."""
    early = EarlyRate(1, False)
    early.begin([1.0], [1.0])
    early.lr = [0.5]
    early.take([10.0], [8.0])
    first = 0.5 * (2.5 * 9 / (0.5 * 7.2)) ** 0.1
    assert early.lr[0] == pytest.approx(first, rel=1e-12)
    n, d = 2 / 11 * 9 + 9 / 11 * 4, 2 / 11 * 7.2 + 9 / 11 * 1
    early.take([4.0], [1.0])
    assert early.lr[0] == pytest.approx(first * (2.5 * n / (first * d)) ** 0.1, rel=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reading_that_is_not_finite_moves_nothing(bad: float) -> None:
    early = EarlyRate(2, False)
    early.begin([1.0, 1.0], [1.0, 1.0])
    before = early.state()
    assert not early.take([bad, 1.0], [1.0, 1.0])
    assert not early.take([1.0, 1.0], [1.0, bad])
    assert early.state() == before
    assert early.take([1.0, 1.0], [1.0, 1.0])


def test_rates_stay_finite_and_positive_whatever_is_read() -> None:
    early = EarlyRate(1, False)
    early.begin([1.0], [1.0])
    for slope, curvature in (
        (1e300, 1e-300),
        (-1e300, 1e300),
        (1e-320, 1.0),
        (1.0, -1.0),
        (0.0, 0.0),
    ):
        for _ in range(500):
            early.take([slope], [curvature])
        assert 2.0**-60 <= early.lr[0] <= 2.0**60
    capped = EarlyRate(1, False, most=0.3)
    capped.begin([10.0], [1.0])
    assert capped.lr == [0.3]
    capped.take([10.0], [1.0])
    assert capped.lr == [0.3]


def test_slopes_within_two_standard_errors_of_nothing_are_noise() -> None:
    """By hand, over the root of the curvature 4: 1, 2, 3 have mean 2 and twice the error 1.15; 0, 1, 5 have 2 and 3.06."""
    for slopes, noise in (
        ((2, 4, 6), False),
        ((0, 2, 10), True),
        ((2,), False),
        ((-2, -4, -6), True),
    ):
        early = EarlyRate(1, False)
        early.begin([1.0], [1.0])
        for slope in slopes:
            early.take([float(slope)], [4.0])
        assert early.is_noise(0) is noise


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
            base,
            rule=rule,
            model=both,
            loss_fn=loss,
            probe=[(torch.zeros(1), torch.zeros(1))],
            race=0,
        )
        for _ in range(19):
            with torch.no_grad():
                a.w.fill_(1.0)
                b.w.fill_(1.0)
            opt.zero_grad()
            loss(both(None), None).backward()
            opt.step()
        return opt

    shared = two(DirectionalRule()).effective_lrs
    assert shared[0] / shared[1] == pytest.approx(4, rel=1e-12)
    each = two(DirectionalRule(per_group=True)).effective_lrs
    # Both moved from a tenth of the same part of n / d, and by the same readings but for the unit.
    assert each[0] * 2 == pytest.approx(each[1] * 50, rel=1e-6)
    assert 1 < each[0] * 2 < 2.5


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

"""When a reading is due, what it is, and where a user finds it."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from metacurv import MetaCurvatureLR, UpdateRecord, ops

from .reciprocal_training import (
    curvature_state,
    leaf,
    loss_of,
    mlp,
    spring,
    train_on_fresh,
)

# When.


@pytest.mark.parametrize("update_freq", [1, 2, 5, 100])
def test_update_freq(update_freq: int) -> None:
    """Due at steps 0, f, 2 f, ...; update_curvature says whether it measured."""
    model = mlp()
    records: list[UpdateRecord] = []
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1),
        update_freq=update_freq,
        on_update=records.append,
    )
    measured = []
    for step in range(11):
        opt.zero_grad()
        loss = loss_of(model, step)
        measured.append(opt.update_curvature(loss))
        loss.backward()
        opt.step()
    assert measured == [step % update_freq == 0 for step in range(11)]
    assert [record.step for record in records] == list(range(0, 11, update_freq))


def test_a_step_that_is_not_due_does_not_look_at_the_loss() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), update_freq=2)
    train_on_fresh(model, opt, 1)
    assert not opt.update_curvature(torch.tensor(1.0))  # would be refused if it were due


def test_at_most_one_reading_between_two_steps() -> None:
    model = mlp()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), update_freq=1)
    loss = loss_of(model)
    assert opt.update_curvature(loss)
    first = opt.last_estimate
    assert not opt.update_curvature(loss)
    assert opt.last_estimate == first or math.isnan(first.stderr)  # type: ignore[union-attr]
    assert curvature_state(opt)["probes"] == 1
    loss.backward()
    opt.step()
    assert opt.update_curvature(loss_of(model))


def test_gradient_accumulation_measures_the_first_micro_batch_once() -> None:
    model = mlp(torch.float64)
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1), update_freq=1, n_hutchinson_samples=2
    )
    for step in range(3):
        model_then = mlp(torch.float64)
        model_then.load_state_dict(model.state_dict())
        opt.zero_grad()
        measured = []
        for micro in range(4):
            loss = loss_of(model, 4 * step + micro) / 4
            measured.append(opt.update_curvature(loss))
            loss.backward()
        opt.step()
        assert measured == [True, False, False, False]
        assert opt.last_estimate is not None
        expected = samples_by_hand(loss_of(model_then, 4 * step) / 4, model_then, 0, 2 * step, 2)
        assert opt.last_estimate.value == pytest.approx(sum(expected) / 2, rel=1e-10)


def test_gradient_clipping() -> None:
    """Between backward and step, as always: the reading is the loss's, the step is the clipped
    gradient's.
    """
    w = leaf(3.0, 4.0)
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=1.0), alpha=0.5)
    loss = spring(w, 1.0)  # gradient (3, 4), trace 2, scale 1 / 2
    opt.update_curvature(loss)
    loss.backward()
    nn.utils.clip_grad_norm_([w], 1.0)
    opt.step()
    assert opt.last_estimate is not None
    assert opt.last_estimate.value == 2.0
    assert w.tolist() == pytest.approx([3.0 - 0.3, 4.0 - 0.4], rel=1e-6)


# What.


def samples_by_hand(
    loss: Tensor, model: nn.Module, seed: int, first_probe: int, n: int
) -> list[float]:
    """v . H v with plain autograd, for the probes of the random-number contract."""
    parameters = list(model.parameters())
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    samples = []
    for probe in range(first_probe, first_probe + n):
        v = [torch.empty_like(p, requires_grad=False) for p in parameters]
        ops.rademacher_(v, seed=seed, probe=probe, backend="reference")
        products = torch.autograd.grad(gradients, parameters, v, retain_graph=True)
        samples.append(sum(float((a * b).sum()) for a, b in zip(v, products, strict=True)))
    return samples


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_every_reading_uses_the_next_probes(backend: str) -> None:
    """Reading r averages probes n r ... n r + n - 1 of the seed; value and stderr against plain
    autograd, in float64.
    """
    model = mlp(torch.float64)
    n, seed = 3, 1234567
    opt = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=0.1),
        update_freq=2,
        n_hutchinson_samples=n,
        seed=seed,
        backend=backend,
    )
    for step in range(5):
        expected = samples_by_hand(loss_of(model, step), model, seed, n * (step // 2), n)
        train_on_fresh(model, opt, 1, start=step)
        if step % 2 == 0:
            estimate = opt.last_estimate
            assert estimate is not None
            mean = sum(expected) / n
            deviation = math.sqrt(sum((s - mean) ** 2 for s in expected) / (n - 1))
            assert estimate.value == pytest.approx(mean, rel=1e-10)
            assert estimate.stderr == pytest.approx(deviation / math.sqrt(n), rel=1e-8)
            assert (estimate.n_samples, estimate.seed) == (n, seed)
            assert (estimate.method, estimate.kind) == ("hutchinson", "hessian")


def test_readings_depend_on_the_seed_and_on_nothing_else() -> None:
    values = []
    for seed in (5, 5, 6):
        model = mlp()
        opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), seed=seed)
        torch.rand(seed)  # other random numbers drawn meanwhile
        opt.update_curvature(loss_of(model))
        assert opt.last_estimate is not None
        values.append(opt.last_estimate.value)
    assert values[0] == values[1] != values[2]


def test_before_any_reading() -> None:
    opt = MetaCurvatureLR(torch.optim.SGD([leaf(1.0)], lr=0.5))
    assert opt.last_estimate is None
    assert opt.effective_lrs == [0.5]
    assert opt.param_groups[0]["lr_scale"] == 1.0
    assert opt.skipped_readings == 0


@pytest.mark.parametrize("lr", [0.5, torch.tensor(0.5)], ids=["float", "tensor"])
def test_effective_lrs_follow_the_users_lr(lr: Any) -> None:
    w, u = leaf(1.0), leaf(1.0)
    base = torch.optim.SGD([{"params": [w]}, {"params": [u], "lr": 0.25}], lr=lr)
    opt = MetaCurvatureLR(base, alpha=0.5)
    opt.update_curvature(spring(w, 1.0) + spring(u, 1.0))  # trace 2
    assert opt.effective_lrs == [0.25, 0.125]
    opt.param_groups[1]["lr"] = 1.0
    assert opt.effective_lrs == [0.25, 0.5]
    assert [group["lr_scale"] for group in opt.param_groups] == [0.5, 0.5]

"""Training goes on bit for bit after torch.load(weights_only=True)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import metacurv
from metacurv import MetaCurvatureLR
from tests.helpers import assert_same

from .reciprocal_training import (
    curvature_state,
    fresh_batch,
    loss_of,
    mlp,
    through_a_file,
    train_on_fresh,
    two_groups,
    weights,
    wrapped,
)


@pytest.mark.parametrize("smoothing", [0.0, 0.9])
@pytest.mark.parametrize("name", ["SGD-nesterov", "Adam", "AdamW-fused", "Adam-tensor-lr", "ASGD"])
def test_training_goes_on_bit_for_bit(name: str, smoothing: float) -> None:
    """Stopped in the middle of a period (step 5, readings at 3 and 6), on fresh objects, against a
    run without a stop.
    """
    whole_model = mlp()
    whole = wrapped(name, whole_model, smoothing=smoothing)
    train_on_fresh(whole_model, whole, 13)

    first_model = mlp()
    first = wrapped(name, first_model, smoothing=smoothing)
    train_on_fresh(first_model, first, 5)
    saved = through_a_file({"model": first_model.state_dict(), "opt": first.state_dict()})

    model = mlp()
    opt = wrapped(name, model, smoothing=smoothing)
    model.load_state_dict(saved["model"])
    opt.load_state_dict(saved["opt"])
    assert opt.effective_lrs == first.effective_lrs
    train_on_fresh(model, opt, 8, start=5)

    assert_same(weights(model), weights(whole_model))
    assert_same(opt.state_dict(), whole.state_dict())
    assert_same(opt.last_estimate, whole.last_estimate)
    assert whole.last_estimate is not None
    assert curvature_state(whole)["probes"] == 10  # 5 readings of 2 probes


def test_a_checkpoint_between_reading_and_step() -> None:
    """The reading was taken, the step was not: the resumed run does not measure again."""
    whole_model, model = mlp(), mlp()
    whole = wrapped("Adam", whole_model)
    first = wrapped("Adam", model)
    train_on_fresh(whole_model, whole, 4)
    train_on_fresh(model, first, 3)
    loss = loss_of(model, 3)
    assert first.update_curvature(loss)
    saved = through_a_file(first.state_dict())
    opt = wrapped("Adam", model)
    opt.load_state_dict(saved)
    assert not opt.update_curvature(loss)
    opt.zero_grad()
    loss.backward()
    opt.step()
    assert_same(weights(model), weights(whole_model))
    assert_same(curvature_state(opt), curvature_state(whole))


def test_with_a_scheduler_and_groups() -> None:
    def build() -> tuple[nn.Module, MetaCurvatureLR, lr_scheduler.LRScheduler]:
        model = mlp()
        opt = MetaCurvatureLR(torch.optim.SGD(two_groups(model), momentum=0.9), update_freq=2)
        return model, opt, lr_scheduler.OneCycleLR(opt, [0.1, 0.05], total_steps=20)

    def run(parts: tuple[Any, Any, Any], start: int, stop: int) -> None:
        for step in range(start, stop):
            train_on_fresh(parts[0], parts[1], 1, start=step)
            parts[2].step()

    whole, first, second = build(), build(), build()
    run(whole, 0, 12)
    run(first, 0, 5)
    for part, saved in zip(second, through_a_file([p.state_dict() for p in first]), strict=True):
        part.load_state_dict(saved)
    run(second, 5, 12)
    assert_same(weights(second[0]), weights(whole[0]))
    assert_same(second[1].state_dict(), whole[1].state_dict())


RESUME = """
import sys, torch, metacurv
from torch import nn
saved = torch.load(sys.argv[1], weights_only=True)
model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
model.load_state_dict(saved["model"])
opt = metacurv.MetaCurvatureLR(
    torch.optim.Adam(model.parameters(), lr=1e-2), alpha=0.3, update_freq=3, smoothing=0.5
)
opt.load_state_dict(saved["opt"])
for x, y in saved["batches"]:
    opt.zero_grad()
    loss = nn.functional.cross_entropy(model(x), y)
    opt.update_curvature(loss)
    loss.backward()
    opt.step()
torch.save({"model": model.state_dict(), "opt": opt.state_dict()}, sys.argv[2])
"""


@pytest.mark.slow
def test_in_a_new_process(tmp_path: Path) -> None:
    model = mlp()
    opt = MetaCurvatureLR(
        torch.optim.Adam(model.parameters(), lr=1e-2), alpha=0.3, update_freq=3, smoothing=0.5
    )
    train_on_fresh(model, opt, 5)
    saved = {"model": model.state_dict(), "opt": opt.state_dict()}
    torch.save({**saved, "batches": [fresh_batch(s) for s in range(5, 10)]}, tmp_path / "saved.pt")
    train_on_fresh(model, opt, 5, start=5)
    package = Path(metacurv.__file__).parent.parent  # the same metacurv, installed or not
    subprocess.run(
        [sys.executable, "-c", RESUME, tmp_path / "saved.pt", tmp_path / "resumed.pt"],
        check=True,
        cwd=package,
    )
    resumed = torch.load(tmp_path / "resumed.pt", weights_only=True)
    assert_same(dict(resumed["model"]), dict(model.state_dict()))
    assert_same(resumed["opt"], opt.state_dict())

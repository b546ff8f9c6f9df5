"""What GPUs and several processes ask for: nothing waits for the device, and all ranks come to one rate.

No GPU has run this. Here a CPU tensor stands in for one on the device, and every read of a number is counted.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv.directional import control
from metacurv.directional.timing import MeasuringTimes
from tests.directional.helpers import data, directional, network, train
from tests.drop_in.helpers import assert_same, weights
from tests.drop_in.test_tensor_lr import CountHostReads
from tests.helpers import run_two_ranks, waiting_is_an_error


class CapturableSGDW(Optimizer):
    """Stands in for ``AdamW(capturable=True)``, which torch refuses on the CPU: steps and decays without reading lr."""

    def __init__(self, params: Any, lr: float | Tensor, weight_decay: float = 0.0) -> None:
        defaults = {
            "lr": lr,
            "capturable": True,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": True,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p *= 1 - group["lr"] * group["weight_decay"]
                    p -= group["lr"] * p.grad


@pytest.mark.parametrize("per_group", [False, True])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_after_the_first_step_no_number_is_read(
    decay: float, per_group: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intervals then do not depend on what the readings find."""
    from metacurv import DirectionalRule

    monkeypatch.setattr(control, "stays_on_device", lambda base: True)
    model = network()
    groups = [
        {"params": list(layer.parameters()), "lr": lr}
        for layer, lr in ((model[0], 0.1), (model[3], 0.3))
    ]
    base = CapturableSGDW(groups, lr=0.1, weight_decay=decay)
    opt = directional(
        base, model, average=True, horizon=400, rule=DirectionalRule(per_group=per_group)
    )
    train(model, opt, 1)
    readings = 0
    with CountHostReads() as reads:
        for step in range(1, 60):
            due = opt._control._times.is_due(step)
            train(model, opt, 1, start=step)
            readings += due
    assert readings > 12
    assert reads.count == 0
    assert all(isinstance(group["lr_scale"], Tensor) for group in opt.param_groups)
    assert type(opt.param_groups[0]["lr"]) is float
    assert len(opt.history) == readings + 1  # read now


def test_the_way_without_waiting_trains_as_the_way_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    for stays in (False, True):
        monkeypatch.setattr(control, "stays_on_device", lambda base, stays=stays: stays)
        model = network(dtype=torch.float64)
        opt = directional(CapturableSGDW(model.parameters(), lr=0.1, weight_decay=0.1), model)
        train(model, opt, 30)
        trained.append((weights(model), opt.history[-1].lr))
    for one, other in zip(*(w for w, _ in trained), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)
    assert trained[0][1] == pytest.approx(trained[1][1], rel=1e-7)


@pytest.mark.slow
def test_ranks_of_a_ddp_model_agree(tmp_path: Path) -> None:
    """Two processes with batches and probes of their own."""
    one, other = run_two_ranks("tests.directional.ddp_training", folder=tmp_path)
    assert_same(one, other)
    assert len(one["history"]) == 10


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a GPU: torch.cuda.is_available() is False"
)
def test_on_a_gpu_nothing_waits() -> None:
    """Under torch's own check for synchronisation, from the second step on."""
    model = network().cuda()
    x, y = (t.cuda() for t in data().tensors)
    opt = directional(
        torch.optim.AdamW(model.parameters(), capturable=True),
        model,
        probe=lambda: (x, y),
        average=True,
    )

    def step() -> None:
        opt.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        opt.step()

    step()
    with waiting_is_an_error():
        for _ in range(39):
            step()
    assert len(opt.history) > 10


def test_intervals_where_nothing_looks_at_the_rate() -> None:
    """Regular ones in a search and the longest after it; between the fewest and the most where the rate always moves."""
    early = [2] * 9
    searching = MeasuringTimes(5, 40.0, regular_until=50.0)
    step, lengths = 0, []
    while step < 150:
        lengths.append(searching.measured(step, None))
        step += lengths[-1]
    assert lengths == [*early, 5, 5, 5, 5, 5, 5, 5, 40, 40, 40]
    following = MeasuringTimes(20, 80.0, regular_until=0.0)
    assert [following.measured(step, None) for step in (0, 18, 58)] == [2, 40, 40]
    assert not following.is_due(97)
    assert following.is_due(98)

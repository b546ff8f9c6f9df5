"""Whole training steps on a GPU: no waiting, no new memory, captured graphs, half precision, several GPUs.

Without a GPU every test here is skipped, and says so; what can be told without one is in tests/cuda/emulation.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import metacurv
from tests.cuda.emulation.no_wait import BASES, with_buffers
from tests.cuda.gpu import DEVICE, needs_gpu
from tests.cuda.gpu_training import gpu_data, gpu_network, gpu_step, wrapped_by
from tests.helpers import run_two_ranks, waiting_is_an_error

pytestmark = needs_gpu

RULES = ("reciprocal", "directional")
each_rule = pytest.mark.parametrize("rule", RULES)


def network_with_buffers() -> nn.Module:
    torch.manual_seed(0)
    return with_buffers(40, 10).to(DEVICE)


OPTIONS: dict[str, list[dict[str, Any]]] = {
    "reciprocal": [
        *({"estimator": each} for each in ("activation", "exact", "auto")),
        {"smoothing": 0.9, "n_hutchinson_samples": 2},
    ],
    "directional": [{"horizon": 4000}, {"average": False}],
}
# Steps before, and steps in which the rule decides nothing: the directional one warms up then, and looks after them.
STRETCH = {"reciprocal": (20, 60), "directional": (30, 65)}
WAYS = [
    *((rule, base, {}, gpu_network) for rule in RULES for base in BASES if base != "Rprop"),
    ("reciprocal", "Rprop", {}, gpu_network),
    *((rule, "Adam", options, gpu_network) for rule in RULES for options in OPTIONS[rule]),
    *((rule, "Adam", {}, network_with_buffers) for rule in RULES),
    ("reciprocal", "Adam", {"estimator": "auto"}, network_with_buffers),
]


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize(("rule", "name", "options", "made"), WAYS)
def test_nothing_waits_and_no_memory_is_asked_for(
    rule: str, name: str, options: dict[str, Any], made: Callable[[], nn.Module], tensor_lr: bool
) -> None:
    """Of the reciprocal rule due steps and others, after a warm-up with steps of both kinds."""
    model, (x, y) = made(), gpu_data()
    warm_up, counted = STRETCH[rule]
    lr = torch.tensor(1e-3, device=DEVICE) if tensor_lr else 1e-3
    base = getattr(torch.optim, name)(model.parameters(), lr=lr, capturable=True)
    opt = wrapped_by(rule, model, base, x, y, **options)
    for _ in range(warm_up):
        gpu_step(model, opt, x, y)
    torch.cuda.synchronize()
    before = torch.cuda.memory_stats()
    with waiting_is_an_error():
        for _ in range(counted):
            gpu_step(model, opt, x, y)
    torch.cuda.synchronize()
    after = torch.cuda.memory_stats()
    for counter in ("num_device_alloc", "segment.all.allocated"):
        assert before[counter] == after[counter], counter
    assert all(lr > 0 for lr in opt.effective_lrs)


@each_rule
def test_rates_are_those_of_the_cpu(rule: str) -> None:
    """Up to rounding, so for a few readings only."""
    rates = []
    for device in ("cpu", DEVICE):
        model = gpu_network(torch.float64).to(device)
        x, y = (part.to(device) for part in gpu_data(torch.float64))
        opt = wrapped_by(rule, model, torch.optim.Adam(model.parameters()), x, y)
        for _ in range(6):
            gpu_step(model, opt, x, y)
        rates.append(opt.effective_lrs)
    assert rates[0] == pytest.approx(rates[1], rel=1e-6)


def between_readings(model: nn.Module, opt: torch.optim.Optimizer, x: Tensor, y: Tensor) -> None:
    functional.cross_entropy(model(x), y).backward()
    opt.step()
    opt.zero_grad(set_to_none=False)


@pytest.mark.parametrize("tensor_lr", [False, True], ids=["number", "tensor"])
def test_a_captured_step_uses_the_newest_rate(tensor_lr: bool) -> None:
    """Readings run as they come, the steps between them as one graph: the same bits as without one.

    A rate in a tensor may change between replays.
    """
    trained = []
    for captured in (False, True):
        model, (x, y) = gpu_network(), gpu_data()
        lr = torch.tensor(1e-3, device=DEVICE) if tensor_lr else 1e-3
        base = torch.optim.Adam(model.parameters(), lr=lr, capturable=True)
        opt = metacurv.MetaCurvatureLR(base, update_freq=1)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                gpu_step(model, opt, x, y)
        torch.cuda.current_stream().wait_stream(side)

        opt.zero_grad(set_to_none=False)
        graph = torch.cuda.CUDAGraph()
        if captured:
            with torch.cuda.graph(graph):
                between_readings(model, opt, x, y)
        for reading in range(4):
            if isinstance(lr, Tensor):
                lr.mul_(0.9)
            opt.update_curvature(functional.cross_entropy(model(x), y))
            between_readings(model, opt, x, y)  # counted, so that the next reading is due
            for _ in range(3):
                if captured:
                    graph.replay()
                else:
                    between_readings(model, opt, x, y)
            assert opt.effective_lrs[0] < 1e-3, reading
        trained.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*trained, strict=True):
        assert torch.equal(one, other)


@each_rule
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(rule: str, dtype: torch.dtype) -> None:
    model, (x, y) = gpu_network(), gpu_data()
    opt = wrapped_by(rule, model, torch.optim.AdamW(model.parameters(), capturable=True), x, y)
    scaler = torch.amp.GradScaler(DEVICE, enabled=dtype == torch.float16)
    losses = []
    for _ in range(60):
        opt.zero_grad()
        with torch.autocast(DEVICE, dtype=dtype):
            loss = functional.cross_entropy(model(x), y)
        opt.update_curvature(loss)
        scaler.scale(loss).backward()
        scaler.step(opt)
        scaler.update()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(lr > 0 for lr in opt.effective_lrs)


@each_rule
def test_parameters_in_bfloat16(rule: str) -> None:
    model, (x, y) = gpu_network(torch.bfloat16), gpu_data(torch.bfloat16)
    opt = wrapped_by(rule, model, torch.optim.SGD(model.parameters(), lr=0.1), x, y)
    losses = [gpu_step(model, opt, x, y).item() for _ in range(60)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
@each_rule
def test_ranks_of_a_ddp_model_agree(rule: str, tmp_path: Path) -> None:
    """A process a GPU, with batches and probes of their own."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    one, other = run_two_ranks("tests.cuda.ddp_on_gpus", rule, folder=tmp_path)
    for name, parameter in one["model"].items():
        assert torch.equal(parameter, other["model"][name]), name
    assert one["rates"] == other["rates"]

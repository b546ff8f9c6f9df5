"""An optimizer's step as a direction, a move along it, and what a reading does to the rate, against the same in torch's ops.

Foreach ops read and write every element once each; there are six for the direction, two for the move. The rule's numbers
are few, and some sixty small ops in torch.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.conftest import Versus
from benchmarks.lines import key
from benchmarks.workloads import SEED, mlp
from metacurv import ops

pytestmark = pytest.mark.benchmark(
    group="step_line", min_rounds=5, max_time=0.3, warmup=True, disable_gc=True
)

NETS = {"12k": "40-100-70-10", "1M": "500-1000-480-10", "20M": "2500-4000-2450-10"}
KEEP, LR, DISTANCE = 0.999, 1e-3, 1e-4


class Step:
    """Parameters before and after a step, and room for a direction."""

    def __init__(self, net: str) -> None:
        generator = torch.Generator().manual_seed(SEED)
        self.parameters = list(mlp(net).parameters())
        self.before = [p.detach().clone() for p in self.parameters]
        self.after = [x - LR * torch.randn(x.shape, generator=generator) for x in self.before]
        self.direction = [torch.zeros_like(x) for x in self.before]
        self.keep = [KEEP] * len(self.before)

    def direct(self) -> Tensor:
        return ops.step_direction_(self.direction, self.before, self.after, self.keep, LR)

    def direct_by_foreach(self) -> tuple[Tensor, Tensor]:
        torch._foreach_copy_(self.direction, self.before)
        torch._foreach_mul_(self.direction, self.keep)
        torch._foreach_sub_(self.direction, self.after)
        torch._foreach_div_(self.direction, LR)
        steps = torch.stack(torch._foreach_norm(self.direction))
        starts = torch.stack(torch._foreach_norm(self.before))
        return steps.square().sum(), starts.square().sum()

    def move(self) -> None:
        ops.move_(self.parameters, self.before, self.direction, DISTANCE)

    def move_by_foreach(self) -> None:
        with torch.no_grad():
            torch._foreach_copy_(self.parameters, self.before)
            torch._foreach_add_(self.parameters, self.direction, alpha=DISTANCE)

    def move_on(self) -> None:
        ops.move_(self.parameters, self.parameters, self.direction, DISTANCE)

    def move_on_by_foreach(self) -> None:
        with torch.no_grad():
            torch._foreach_add_(self.parameters, self.direction, alpha=DISTANCE)


@pytest.mark.parametrize("size", NETS)
@pytest.mark.parametrize("what", ["direction", "move", "move in place"])
def test_step_line(what: str, size: str, benchmark: Any, versus: Versus) -> None:
    step = Step(NETS[size])
    n = sum(x.numel() for x in step.before)
    sums = step.direct()
    steps, starts = step.direct_by_foreach()
    # torch adds float32 in float32.
    assert float(sums[0]) == pytest.approx(float(steps), rel=1e-2)
    assert float(sums[1]) == pytest.approx(float(starts), rel=1e-2)
    assert float(sums[2]) == 0
    step.move()
    moved = [p.detach().clone() for p in step.parameters]
    step.move_by_foreach()
    # torch may fuse the multiplication with the addition.
    assert all(
        torch.allclose(x, p.detach(), rtol=1e-6, atol=1e-7)
        for x, p in zip(moved, step.parameters, strict=True)
    )
    ours, other = {
        "direction": (step.direct, step.direct_by_foreach),
        "move": (step.move, step.move_by_foreach),
        "move in place": (step.move_on, step.move_on_by_foreach),
    }[what]
    benchmark(ours)
    benchmark.extra_info.update(impl="metacurv", size=size, n=n, bytes=4 * n, backend="native")
    versus(key("step_line", size, what, "foreach"), ours, other)


def test_rate(benchmark: Any, versus: Versus) -> None:
    reading = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    rule = {"sigma": 2.5, "kappa": 0.1, "beta": 0.97, "searching": True}

    def updated(backend: str) -> Tensor:
        scales = torch.tensor([[0.1], [1.0], [4.0], [0.0]], dtype=torch.float64)
        shared = torch.tensor([1.0, 0.6, 0.6, 5.0, 0.1, 1.0], dtype=torch.float64)
        ops.directional_lr_(scales, shared, reading, backend=backend, **rule)
        return scales

    torch.testing.assert_close(updated("native"), updated("reference"), rtol=1e-13, atol=0)
    benchmark(updated, "native")
    benchmark.extra_info.update(impl="metacurv", size="1", n=1, bytes=80, backend="native")
    ours, other = (lambda: updated("native")), (lambda: updated("reference"))
    versus(key("step_line", "1", "rate", "torch"), ours, other)

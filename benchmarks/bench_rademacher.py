"""Filling a tensor with a probe, against sampling it with torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.conftest import Versus
from benchmarks.lines import key
from benchmarks.workloads import SEED
from metacurv import ops

pytestmark = pytest.mark.benchmark(
    group="rademacher_", min_rounds=5, max_time=0.3, warmup=True, disable_gc=True
)


@pytest.mark.parametrize("exponent", [14, 20, 24], ids=lambda e: f"2^{e}")
@pytest.mark.parametrize("impl", ["metacurv", "randint_like"])
def test_rademacher(impl: str, exponent: int, benchmark: Any, versus: Versus) -> None:
    x = torch.empty(1 << exponent)
    sampled = torch.empty(0)

    def ours() -> None:
        ops.rademacher_([x], seed=SEED, probe=0)

    def other() -> None:
        nonlocal sampled
        sampled = torch.randint_like(x, high=2) * 2 - 1

    torch.manual_seed(SEED)
    benchmark(ours if impl == "metacurv" else other)
    benchmark.extra_info.update(
        impl=impl, size=f"2^{exponent}", n=x.numel(), bytes=x.nbytes, backend="native"
    )
    if impl == "metacurv":
        # The twin on a part: it holds 32 bytes for every element.
        expected = torch.empty(min(x.numel(), 1 << 20))
        ops.rademacher_([expected], seed=SEED, probe=0, backend="reference")
        assert torch.equal(x[: expected.numel()], expected)
        drawn = x
    else:
        versus(key("rademacher_", f"2^{exponent}", impl), ours, other)
        drawn = sampled
    assert torch.equal(drawn.abs(), torch.ones_like(drawn))
    assert abs(float(drawn.double().mean())) < 5 * drawn.numel() ** -0.5

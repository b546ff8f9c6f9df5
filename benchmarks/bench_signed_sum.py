"""v . x without storing v, against sampling v and multiplying, and against reading x once (``x.sum()``)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from benchmarks.conftest import Versus
from benchmarks.lines import key
from benchmarks.workloads import SEED
from metacurv import ops

pytestmark = pytest.mark.benchmark(
    group="signed_sum", min_rounds=5, max_time=0.3, warmup=True, disable_gc=True
)


def expected_sum(x: torch.Tensor) -> float:
    """The same sum from a stored probe, in float64."""
    v = torch.empty_like(x)
    ops.rademacher_([v], seed=SEED, probe=0)
    pieces = zip(v.split(1 << 20), x.split(1 << 20), strict=True)
    return float(sum((a.double() * b.double()).sum() for a, b in pieces))


@pytest.mark.parametrize(
    ("impl", "exponent"),
    [("metacurv", 20), ("randint_like", 20), ("sum", 20), ("metacurv", 26), ("sum", 26)],
    ids=lambda value: f"2^{value}" if isinstance(value, int) else value,
)
def test_signed_sum(impl: str, exponent: int, benchmark: Any, versus: Versus) -> None:
    x = torch.randn(1 << exponent, generator=torch.Generator().manual_seed(SEED))

    def ours() -> float:
        return float(ops.signed_sum([x], seed=SEED, probe=0))

    def sampled() -> float:
        return float((x * (torch.randint_like(x, high=2) * 2 - 1)).sum())

    def plain_sum() -> float:
        return float(x.sum())

    call = {"metacurv": ours, "randint_like": sampled, "sum": plain_sum}[impl]
    torch.manual_seed(SEED)
    value = benchmark(call)
    benchmark.extra_info.update(
        impl=impl, size=f"2^{exponent}", n=x.numel(), bytes=x.nbytes, backend="native"
    )
    norm = float(x.norm())  # the standard deviation of v . x
    if impl == "metacurv":
        assert abs(value - expected_sum(x)) <= 1e-12 * norm
        assert abs(value) < 5 * norm
    elif impl == "randint_like":
        assert abs(value - ours()) < 5 * 2**0.5 * norm
    else:
        assert abs(value - float(x.double().sum())) < 1e-3 * norm
    if impl != "metacurv":
        versus(key("signed_sum", f"2^{exponent}", impl), ours, call)

"""What K probes hold beyond one Hessian-vector product through the gradient's graph, in copies of the parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import metacurv
from benchmarks.lines import LARGE, SMALL, key
from benchmarks.peak_memory import peak_bytes
from benchmarks.workloads import BATCH, SEED, batch, loss_function, mlp, parameter_bytes

pytestmark = pytest.mark.benchmark(group="memory", disable_gc=True)


@pytest.mark.parametrize("samples", [BATCH, 10 * BATCH], ids=lambda n: f"batch={n}")
@pytest.mark.parametrize("k", [1, 16], ids=lambda k: f"K={k}")
@pytest.mark.parametrize("net", [SMALL, LARGE])
def test_memory(net: str, k: int, samples: int, benchmark: Any) -> None:
    model = mlp(net)
    x, y = batch(net, samples)
    loss = loss_function(model(x), y)
    params = list(model.parameters())
    v = [torch.ones_like(p) for p in params]

    def double_backward() -> None:
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        torch.autograd.grad(gradients, params, v, retain_graph=True)

    def ours() -> metacurv.TraceEstimate:
        return metacurv.hessian_trace(loss, params, n_samples=k, seed=SEED)

    estimate = benchmark.pedantic(ours, rounds=1)
    base, peak, copy = peak_bytes(double_backward), peak_bytes(ours), parameter_bytes(model)
    assert base > copy  # else the profiler saw too little
    extra = (peak - base) / copy
    size = net if samples == BATCH else f"{net}, batch {samples}"
    benchmark.extra_info.update(
        impl="metacurv",
        size=size,
        n=sum(p.numel() for p in params),
        K=k,
        stderr=None if k == 1 else estimate.stderr,
        bytes=peak,
        backend="native",
        comparison=key("memory", size, f"K={k}", "double backward"),
        memory={"ours_bytes": peak, "other_bytes": base, "copy_bytes": copy, "copies": extra},
    )

"""The trace of the Hessian from the forward pass on, against a plain loop and against other libraries.

For equal K all that sample have the same standard error (see ``trace_methods``), so equal K is equal accuracy.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import pytest
import torch

import metacurv
from benchmarks.conftest import Versus
from benchmarks.lines import LARGE, PROBE_COUNTS, SMALL, key
from benchmarks.workloads import SEED, batch, loss_function, mlp

pytestmark = [
    pytest.mark.benchmark(
        group="hessian_trace", min_rounds=5, max_time=0.3, warmup=True, disable_gc=True
    ),
    # PyHessian's way to a graph, and BackPACK's hooks.
    pytest.mark.filterwarnings("ignore:Using backward.. with create_graph=True:UserWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]

AT_16 = ("plain loop", "curvlinops", "is_grads_batched", "vmap(jvp(grad))", "BackPACK, exact")
CASES = [
    *(("metacurv", k) for k in PROBE_COUNTS),
    *(("PyHessian", k) for k in PROBE_COUNTS),
    *((impl, 16) for impl in AT_16),
]


@cache
def moments(net: str) -> tuple[float, float]:
    """The trace, and the standard deviation of one probe, from probes that no benchmark uses."""
    x, y = batch(net)
    model = mlp(net)
    n = 256
    estimate = metacurv.hessian_trace(
        loss_function(model(x), y), model.parameters(), n_samples=n, seed=SEED + 1
    )
    return estimate.value, estimate.stderr * math.sqrt(n)


@pytest.mark.parametrize("net", [SMALL, LARGE])
@pytest.mark.parametrize(("impl", "k"), CASES, ids=[f"{impl}-K={k}" for impl, k in CASES])
def test_hessian_trace(
    impl: str, k: int, net: str, benchmark: Any, versus: Versus, peers: dict[str, str]
) -> None:
    from benchmarks.trace_methods import METHODS, Problem  # needs the peers

    problem = Problem(mlp(net), *batch(net))
    trace, deviation = moments(net)
    stderr = 0.0 if impl.endswith("exact") else deviation / math.sqrt(k)
    ours = METHODS["metacurv"](problem, k)
    call = METHODS[impl](problem, k)
    torch.manual_seed(SEED)
    value = benchmark(call)
    benchmark.extra_info.update(
        impl=impl,
        size=net,
        n=sum(p.numel() for p in problem.model.parameters()),
        K=None if impl.endswith("exact") else k,
        stderr=stderr,
        estimate=value,
        backend="native" if impl == "metacurv" else None,
    )
    assert abs(value - trace) < 5 * math.hypot(stderr, deviation / math.sqrt(256))
    if impl == "metacurv":
        reference = metacurv.hessian_trace(
            loss_function(problem.model(problem.x), problem.y),
            problem.model.named_parameters(),
            n_samples=k,
            seed=SEED,
            backend="reference",
        )
        assert abs(value - reference.value) < 1e-4 * deviation
    else:
        versus(key("hessian_trace", net, f"K={k}", impl), ours, call)

"""``estimate_trace`` against what else there is: single calls, and times to an equal standard error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import metacurv
from benchmarks.conftest import Versus
from benchmarks.curvature_truth import Kind, truth
from benchmarks.curvature_workloads import MLP, WORKLOADS, Workload
from benchmarks.estimate_lines import (
    ALSO,
    ESTIMATE_LINES,
    GRADIENT,
    RELU,
    STEP,
    call,
    is_race,
)

pytestmark = [
    pytest.mark.benchmark(
        group="estimate_trace", min_rounds=5, max_time=0.2, warmup=True, disable_gc=True
    ),
    # The peers' ways: graphs in .grad, hooks, old spellings.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

NEVER = 1 << 40
RACES = [name for line in ESTIMATE_LINES if is_race(line) for name in line.keys] + list(ALSO)
# metacurv's methods that may win to a given error; the quicker one runs.
MAY_WIN = ("exact", "activation")


def kind_of(workload: Workload) -> Kind:
    return "hessian" if workload.family == MLP else "ggn"


def gradient(workload: Workload) -> Callable[[], object]:
    params = list(workload.model.parameters())

    def one() -> object:
        loss = workload.loss(workload.model(workload.x), workload.y)
        return torch.autograd.grad(loss, params)

    return one


def describe(benchmark: Any, impl: str, workload: Workload, k: int | None) -> None:
    benchmark.extra_info.update(impl=impl, size=workload.name, n=workload.n, K=k)


@pytest.mark.parametrize("workload_name", RELU)
@pytest.mark.parametrize("method", ["exact", "activation"])
def test_against_a_gradient(
    method: str, workload_name: str, benchmark: Any, versus: Versus, peers: dict[str, str]
) -> None:
    from benchmarks.curvature_ours import OURS
    from benchmarks.equal_error import contender

    workload = WORKLOADS[workload_name]()
    one = OURS[method, "hessian"].make(workload, 1)
    benchmark(one)
    describe(benchmark, "metacurv", workload, 1)
    contender(OURS[method, "hessian"], workload, 1.0).check("hessian")
    versus(call(workload_name, method, GRADIENT), one, gradient(workload))


@pytest.mark.parametrize("workload_name", RELU)
def test_exact_against_diag_hessian(
    workload_name: str, benchmark: Any, versus: Versus, peers: dict[str, str]
) -> None:
    from benchmarks.curvature_ours import OURS
    from benchmarks.curvature_peers import NAMED
    from benchmarks.equal_error import contender

    workload = WORKLOADS[workload_name]()
    other = contender(NAMED["BackPACK DiagHessian"], workload, 1.0)
    benchmark(other.timed[0][1])
    describe(benchmark, other.peer.name, workload, None)
    other.check("hessian")
    one = OURS["exact", "hessian"].make(workload, 1)
    versus(call(workload_name, "exact", other.peer.name), one, other.timed[0][1])


@pytest.mark.parametrize("workload_name", RELU)
def test_training_step(
    workload_name: str, benchmark: Any, pytestconfig: pytest.Config, peers: dict[str, str]
) -> None:
    """What a reading adds to a step: a forward pass, a reading and a step, less the same where no reading is due.

    No backward pass: without gradients Adam leaves the weights as they are.
    """
    from benchmarks.equal_error import extra

    workload = WORKLOADS[workload_name]()
    adam = torch.optim.Adam(workload.model.parameters())

    def step_of(update_freq: int) -> tuple[Any, Callable[[], None]]:
        opt: Any = metacurv.MetaCurvatureLR(
            adam, update_freq=update_freq, model=workload.model, estimator="activation"
        )

        def step() -> None:
            opt.update_curvature(workload.loss(workload.model(workload.x), workload.y))
            opt.step()

        step()  # step 0 is due
        return opt, step

    opt, with_reading = step_of(1)
    _, without = step_of(NEVER)
    benchmark(with_reading)
    describe(benchmark, "metacurv", workload, 1)
    known = truth(workload, "hessian").value
    assert opt.last_estimate.method == "activation"
    assert abs(opt.last_estimate.value - known) < 0.6 * known
    if not benchmark.disabled:
        seconds = pytestconfig.getoption("--pair-seconds")
        added = extra(with_reading, without, gradient(workload), seconds=seconds)
        benchmark.extra_info.update(
            comparison=call(workload_name, STEP, GRADIENT), paired=added.as_dict()
        )


@pytest.mark.parametrize("comparison", RACES)
def test_to_equal_error(
    comparison: str, benchmark: Any, pytestconfig: pytest.Config, peers: dict[str, str]
) -> None:
    from benchmarks.curvature_ours import OURS
    from benchmarks.curvature_peers import NAMED
    from benchmarks.equal_error import contender, quickest, race
    from benchmarks.peers.peer import version

    _, workload_name, error, name = comparison.split(" / ")
    workload = WORKLOADS[workload_name]()
    kind = kind_of(workload)
    rtol = float(error.removeprefix("to ").removesuffix(" %")) / 100
    assert NAMED[name].measures(workload, kind)
    other = contender(NAMED[name], workload, rtol)
    candidates = [OURS[method, kind] for method in MAY_WIN]
    one = quickest([peer for peer in candidates if peer.serves(workload)], workload, rtol)
    benchmark.pedantic(one.timed[-1][1], rounds=3, warmup_rounds=1)
    describe(benchmark, name, workload, other.samples)
    value, stderr = other.check(kind)
    ours_value, ours_stderr = one.check(kind)
    benchmark.extra_info.update(
        peer=version(other.peer),
        estimate=value,
        stderr=stderr,
        ours={"method": one.peer.name, "samples": one.samples},
        ours_estimate=ours_value,
        ours_stderr=ours_stderr,
    )
    if not benchmark.disabled:
        paired = race(one, other, seconds=pytestconfig.getoption("--pair-seconds"))
        benchmark.extra_info.update(comparison=comparison, paired=paired.as_dict())

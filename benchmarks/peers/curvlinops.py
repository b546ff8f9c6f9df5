"""curvlinops: linear operators, and three estimators of their traces.

All probes go through one vmap, and stay in memory until the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from curvlinops import (
    GGNLinearOperator,
    HessianLinearOperator,
    hutchinson_trace,
    hutchpp_trace,
    xtrace,
)

from benchmarks.curvature_truth import Kind
from benchmarks.curvature_workloads import Workload
from benchmarks.peers.peer import Make, Noise, Peer, Trace, any_network, trainable

OPERATORS: dict[Kind, Any] = {"hessian": HessianLinearOperator, "ggn": GGNLinearOperator}


def by(kind: Kind, estimate: Callable[[Any, int], Any]) -> Make:
    def make(workload: Workload, k: int) -> Trace:
        operator = OPERATORS[kind](
            workload.model,
            workload.loss,
            trainable(workload.model),
            [(workload.x, workload.y)],
            check_deterministic=False,  # the check costs 35 gradients
        )
        return lambda: float(estimate(operator, k))

    return make


ESTIMATES: tuple[tuple[str, Callable[[Any, int], Any], Noise, int], ...] = (
    ("Hutchinson", hutchinson_trace, "probe", 1),
    ("Hutch++", hutchpp_trace, "sketch", 3),
    ("XTrace", xtrace, "sketch", 2),
)

PEERS = tuple(
    Peer(
        f"curvlinops {name}{', GGN' if kind == 'ggn' else ''}",
        "curvlinops-for-pytorch",
        kind,
        noise,
        by(kind, estimate),
        any_network,
        "any network that torch.func differentiates",
        multiple,
    )
    for kind in OPERATORS
    for name, estimate, noise, multiple in ESTIMATES
)

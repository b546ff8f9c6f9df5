"""hessian-eigenthings: one product at a time, each with a forward pass of its own."""

from __future__ import annotations

import itertools
from typing import Any

from hessian_eigenthings import (
    GGNOperator,
    HessianOperator,
    supervised_forward,
    supervised_loss,
    supervised_loss_of_output,
    trace,
)

from benchmarks.curvature_truth import Kind
from benchmarks.curvature_workloads import Workload
from benchmarks.peers.peer import Make, Noise, Peer, Trace, any_network


def operator(kind: Kind, workload: Workload) -> Any:
    batches = [(workload.x, workload.y)]
    if kind == "hessian":
        return HessianOperator(workload.model, batches, supervised_loss(workload.loss))
    return GGNOperator(
        workload.model, batches, supervised_forward, supervised_loss_of_output(workload.loss)
    )


def by(kind: Kind, method: Any) -> Make:
    def make(workload: Workload, k: int) -> Trace:
        matrix = operator(kind, workload)
        seeds = itertools.count()  # without a seed all calls return the same
        return lambda: trace(matrix, num_matvecs=k, method=method, seed=next(seeds)).estimate

    return make


METHODS: tuple[tuple[str, str, Noise, int], ...] = (
    ("Hutchinson", "hutchinson", "probe", 1),
    ("Hutch++", "hutch++", "sketch", 3),
)
KINDS: tuple[Kind, ...] = ("hessian", "ggn")

PEERS = tuple(
    Peer(
        f"hessian-eigenthings {name}{', GGN' if kind == 'ggn' else ''}",
        "hessian-eigenthings",
        kind,
        noise,
        by(kind, method),
        any_network,
        "any network",
        multiple,
    )
    for kind in KINDS
    for name, method, noise, multiple in METHODS
)

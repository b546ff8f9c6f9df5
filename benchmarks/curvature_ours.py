"""metacurv's own ways to a trace, in the form of the peers'."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import metacurv
from benchmarks.curvature_truth import Kind
from benchmarks.curvature_workloads import MLP, TRANSFORMER, Workload
from benchmarks.peers.peer import Make, Noise, Peer, Trace, any_network


def by(method: str, kind: Kind) -> Make:
    def make(workload: Workload, k: int) -> Trace:
        seeds = itertools.count()

        def trace() -> float:
            return metacurv.estimate_trace(
                workload.model,
                workload.loss,
                workload.x,
                workload.y,
                kind=kind,
                method=method,
                n_samples=k,
                seed=next(seeds),
            ).value

        return trace

    return make


def perceptrons(workload: Workload) -> bool:
    return workload.family == MLP


def few_columns(workload: Workload) -> bool:
    """The transformer's loss has 64 x 94: minutes."""
    return workload.family != TRANSFORMER


# method, kind, noise, the networks of the workloads that it serves
METHODS: tuple[tuple[str, Kind, Noise, Callable[[Workload], bool]], ...] = (
    ("exact", "hessian", "none", perceptrons),
    ("exact", "ggn", "none", few_columns),
    ("activation", "hessian", "draw", perceptrons),
    ("activation", "ggn", "draw", any_network),
    ("hutchinson", "hessian", "probe", any_network),
    ("hutchinson", "ggn", "probe", any_network),
    ("finite_difference", "hessian", "probe", any_network),
)

OURS = {
    (method, kind): Peer(
        f"metacurv {method}", "metacurv", kind, noise, by(method, kind), serves, ""
    )
    for method, kind, noise, serves in METHODS
}


def ours_for(workload: Workload, kind: Kind) -> list[Peer]:
    """All that give this trace."""
    return [peer for (_, of), peer in OURS.items() if of == kind and peer.serves(workload)]

"""PyHessian: Hutchinson's estimator, with a wait for the host at every probe."""

from __future__ import annotations

import copy

import pyhessian

from benchmarks.curvature_workloads import Workload
from benchmarks.peers.peer import Peer, Trace, any_network


def hutchinson(workload: Workload, k: int) -> Trace:
    model = copy.deepcopy(workload.model)  # it is left in eval mode, with gradients

    def trace() -> float:
        for p in model.parameters():
            p.grad = None  # it adds to what is there, graphs included
        hessian = pyhessian.hessian(model, workload.loss, data=(workload.x, workload.y), cuda=False)
        # With its default tolerance it stops when two means happen to be close.
        samples = hessian.trace(maxIter=k, tol=-1e30)
        assert len(samples) == k
        return sum(samples) / k

    return trace


PEERS = (
    Peer("PyHessian", "pyhessian", "hessian", "probe", hutchinson, any_network, "any network"),
)

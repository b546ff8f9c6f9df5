"""pytorch_optimizer: the Hutchinson diagonal that its second-order optimizers share."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

import torch
from pytorch_optimizer.base.optimizer import BaseOptimizer

from benchmarks.curvature_workloads import Workload
from benchmarks.peers.peer import Peer, Trace, any_network, trainable


def hutchinson(workload: Workload, k: int) -> Trace:
    model = copy.deepcopy(workload.model)
    params = trainable(model)
    groups: list[Any] = [{"params": params}]
    state: Any = defaultdict(dict)

    def trace() -> float:
        workload.loss(model(workload.x), workload.y).backward(create_graph=True)
        BaseOptimizer.zero_hessian(groups, state)
        BaseOptimizer.compute_hutchinson_hessian(
            groups, state, num_samples=k, distribution="rademacher"
        )
        for p in params:
            p.grad = None
        return float(torch.stack([state[p]["hessian"].sum() for p in params]).sum())

    return trace


PEERS = (
    Peer(
        "pytorch_optimizer",
        "pytorch_optimizer",
        "hessian",
        "probe",
        hutchinson,
        any_network,
        "any network",
    ),
)

"""metacurv's ideas in plain torch: activation space by hand for a perceptron, and by per-sample gradients for any network.

Not peers, since no library has them; they say how much of a gain is the idea and how much its making.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.curvature_truth import pulled_norms
from benchmarks.curvature_workloads import MLP, Workload
from benchmarks.peers.peer import Peer, Trace, any_network


def perceptron(workload: Workload, e: Tensor) -> float:
    """Back-propagates S e and adds up |u|^2 (|a|^2 + 1) layer by layer. e: [m, B or 1, C]"""
    with torch.no_grad():
        inputs: list[Tensor] = []
        a = workload.x
        for module in workload.model:  # type: ignore[union-attr]  # a Sequential
            inputs.append(a)
            a = module(a)
        p = a.softmax(1)
        weighted = p.sqrt() * e
        u = weighted - p * weighted.sum(-1, keepdim=True)  # [m, B, C]
        found = []
        for module, a in zip(reversed(workload.model), reversed(inputs), strict=True):
            if isinstance(module, nn.Linear):
                found.append((u.square().sum((0, 2)) * (a.square().sum(1) + 1)).sum())
                u = u @ module.weight
            else:
                u = u * (a > 0)
        return float(torch.stack(found).sum()) / len(workload.y)


def exact(workload: Workload, k: int) -> Trace:
    """All columns of S. ``k`` is not used."""
    columns = torch.eye(workload.model[-1].out_features)[:, None]
    return lambda: perceptron(workload, columns)


def draws(workload: Workload, k: int) -> Trace:
    """``k`` random backward passes at once."""
    shape = (k, len(workload.y), workload.model[-1].out_features)
    return lambda: perceptron(workload, torch.randint(0, 2, shape) * 2.0 - 1) / k


def per_sample(workload: Workload, k: int) -> Trace:
    """``k`` random backward passes under vmap, each sample's whole gradient formed."""

    def trace() -> float:
        norms = pulled_norms(workload)
        shape = workload.model(workload.x).shape
        found = [norms(torch.randint(0, 2, shape) * 2.0 - 1).sum() for _ in range(k)]
        return float(torch.stack(found).sum()) / (k * workload.y.numel())

    return trace


def _relu_perceptron(workload: Workload) -> bool:
    return workload.family == MLP and workload.piecewise_linear


_COVERS = "ReLU perceptrons with cross-entropy"

PEERS = (
    Peer(
        "activation space by hand, exact", "torch", "ggn", "none", exact, _relu_perceptron, _COVERS
    ),
    Peer("activation space by hand", "torch", "ggn", "draw", draws, _relu_perceptron, _COVERS),
    Peer(
        "per-sample gradients, vmap(vjp)",
        "torch",
        "ggn",
        "draw",
        per_sample,
        any_network,
        "cross-entropy",
    ),
)

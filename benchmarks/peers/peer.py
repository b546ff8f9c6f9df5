"""What a peer is: a way to a trace that a user has today, in its best setting."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from benchmarks.curvature_truth import Kind
from benchmarks.curvature_workloads import CNN, MLP, Workload

# From a forward pass to the estimate, as a float on the host. Calls draw afresh from torch's generator.
Trace = Callable[[], float]
# (workload, number of samples) -> call; what does not depend on the weights' values is set up outside the call.
Make = Callable[[Workload, int], Trace]

# "none": exact. "probe": v . A v for Rademacher v in parameter space, the same deviation for all. "draw": noise of its own that
# falls as 1 / sqrt(K). "sketch": noise that falls faster.
Noise = Literal["none", "probe", "draw", "sketch"]


def any_network(workload: Workload) -> bool:
    return True


def stacks(workload: Workload) -> bool:
    """Networks in which no position of a sequence shares its weights with another."""
    return workload.family in (MLP, CNN)


@dataclass(frozen=True)
class Peer:
    """``package``: the distribution whose version is reported. ``serves``: whether it is right on that network; ``covers``: the
    same in words. ``multiple``: K must be a multiple of it.
    """

    name: str
    package: str
    kind: Kind
    noise: Noise
    make: Make
    serves: Callable[[Workload], bool]
    covers: str
    multiple: int = 1

    def measures(self, workload: Workload, kind: Kind) -> bool:
        """Whether it gives the trace of that kind; a GGN is the Hessian's where every activation is piecewise linear."""
        same = self.kind == kind or workload.piecewise_linear
        return same and self.serves(workload)


def version(peer: Peer) -> str:
    return f"{peer.package} {importlib.metadata.version(peer.package)}"


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def signs(params: list[nn.Parameter]) -> list[Tensor]:
    """Rademacher vectors. bernoulli_ takes three times as long, rand().sign() as long."""
    return [torch.randint_like(p, high=2) * 2 - 1 for p in params]


def total(vs: list[Tensor], products: tuple[Tensor, ...] | list[Tensor]) -> Tensor:
    """v . A v, on the device. v, A v: one tensor a parameter, perhaps with K in front of both."""
    return torch.stack([(v * h).sum() for v, h in zip(vs, products, strict=True)]).sum()

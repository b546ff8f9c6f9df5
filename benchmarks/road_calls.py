"""The calls that roads are measured in: those of the lines of the speed table, and a few more."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import metacurv
from benchmarks.curvature_workloads import MLP, WORKLOADS, Workload
from benchmarks.road_case import Call
from benchmarks.workloads import batch, loss_function, mlp

RELU, TANH, TANH_TRAINED = "relu MLP, untrained", "tanh MLP, untrained", "tanh MLP, trained"
DIGITS, CHARACTERS = "digits CNN, trained", "character transformer, trained"
HUNDRED_CLASSES = "40-100-100-100"


def workload(name: str) -> Workload:
    """One of the table's by its name, or a ReLU perceptron by its sizes, such as "40-256-256-10"."""
    if name in WORKLOADS:
        return WORKLOADS[name]()
    x, y = batch(name)
    return Workload(name, MLP, False, mlp(name), x, y, True, loss_function)


class ResidualBlock(nn.Module):
    """x + linear(relu(linear(x)))."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """x: [B, width] -> [B, width]."""
        out: Tensor = x + self.inner(x)
        return out


def residual(width: int = 256) -> Workload:
    """A perceptron with a residual block, no plain stack of layers."""
    x, y = batch("40-10")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, width), ResidualBlock(width), nn.Linear(width, 10))
    return Workload(f"residual MLP {width}", MLP, False, model, x, y, True, loss_function)


def hessian_trace(problem: Workload, k: int) -> Callable[[], Call]:
    """From the forward pass on, K probes."""

    def trace() -> float:
        loss = problem.loss(problem.model(problem.x), problem.y)
        named = problem.model.named_parameters()
        return metacurv.hessian_trace(loss, named, n_samples=k).value

    return lambda: trace


def estimate_trace(problem: Workload, kind: Any, method: Any, k: int = 1) -> Callable[[], Call]:
    """K draws where the method samples."""

    def trace() -> float:
        return metacurv.estimate_trace(
            problem.model,
            problem.loss,
            problem.x,
            problem.y,
            kind=kind,
            method=method,
            n_samples=k,
        ).value

    return lambda: trace


def hessian_to_error(problem: Workload, rtol: float) -> Callable[[], Call]:
    """By the method that ``estimate_trace`` chooses, to a relative standard error."""

    def trace() -> float:
        return metacurv.estimate_trace(
            problem.model, problem.loss, problem.x, problem.y, rtol=rtol
        ).value

    return lambda: trace


def training_step(problem: Workload) -> Callable[[], Call]:
    """A forward pass, a reading by one draw and a step; without gradients Adam leaves the weights as they are."""

    def make() -> Call:
        adam = torch.optim.Adam(problem.model.parameters())
        opt: Any = metacurv.MetaCurvatureLR(
            adam, update_freq=1, model=problem.model, estimator="activation"
        )

        def step() -> float:
            opt.update_curvature(problem.loss(problem.model(problem.x), problem.y))
            opt.step()
            return float(opt.last_estimate.value)

        return step

    return make

"""Estimates on a GPU against those of the same probes on the CPU, in float64. Skipped, and said so, without one.

Ops without a CUDA kernel are there, too: on a GPU the estimators call their twins.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import metacurv
from metacurv.ops.backend import KERNELS, TWINS
from tests.cuda.gpu import DEVICE, needs_gpu
from tests.ops.op_calls import calls

pytestmark = needs_gpu

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def smooth() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.Tanh(), nn.Linear(20, 5))


def rectified() -> nn.Module:
    return nn.Sequential(nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, 5))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Unflatten(1, (1, 12)),
        nn.Conv1d(1, 4, 3),
        nn.BatchNorm1d(4),
        nn.ReLU(),
        nn.MaxPool1d(2),
        nn.Flatten(),
        nn.Linear(20, 5),
    ).eval()


def attention() -> nn.Module:
    layer = nn.TransformerEncoderLayer(
        6, 2, dim_feedforward=10, dropout=0.0, batch_first=True, activation="gelu"
    )
    return nn.Sequential(nn.Unflatten(1, (2, 6)), layer, nn.Flatten(), nn.Linear(12, 5)).eval()


Network = Callable[[], nn.Module]


def on(device: str, network: Network) -> tuple[nn.Module, Tensor, Tensor]:
    """The same numbers on every device."""
    torch.manual_seed(0)
    model = network().double().to(device)
    x, y = torch.randn(30, 12, dtype=torch.float64), torch.randint(0, 5, (30,))
    return model, x.to(device), y.to(device)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize(
    ("network", "kind", "method"),
    [
        *((smooth, "hessian", m) for m in ("exact", "activation", "hutchinson")),
        (smooth, "hessian", "finite_difference"),
        *((rectified, "hessian", m) for m in ("exact", "activation")),
        *((convolutions, "hessian", m) for m in ("exact", "activation", "hutchinson")),
        *((convolutions, "ggn", m) for m in ("exact", "activation", "hutchinson")),
        *((attention, "ggn", m) for m in ("exact", "activation")),
    ],
)
def test_estimate_trace(network: Network, kind: str, method: str, backend: str) -> None:
    options: dict[str, Any] = {"kind": kind, "method": method, "seed": 5, "backend": backend}
    if method != "exact":
        options["n_samples"] = 6
    here, there = (
        metacurv.estimate_trace(model, functional.cross_entropy, x, y, **options)
        for model, x, y in (on(DEVICE, network), on("cpu", network))
    )
    assert here.method == there.method == method
    rtol = 1e-5 if method == "finite_difference" else 1e-9
    assert float(here.value) == pytest.approx(float(there.value), rel=rtol)
    assert float(here.stderr) == pytest.approx(float(there.stderr), rel=10 * rtol, abs=1e-12)
    assert here.per_layer == pytest.approx(there.per_layer, rel=10 * rtol, abs=1e-9)


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("network", [smooth, convolutions])
def test_hessian_trace(network: Network, backend: str) -> None:
    values = []
    for device in (DEVICE, "cpu"):
        model, x, y = on(device, network)
        loss = functional.cross_entropy(model(x), y)
        estimate = metacurv.hessian_trace(
            loss, model.named_parameters(), n_samples=6, seed=5, backend=backend
        )
        values.append((float(estimate.value), float(estimate.stderr)))
    assert values[0] == pytest.approx(values[1], rel=1e-9)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("ggn", "forward_mode"), ("ggn", "finite_difference"), ("hessian", "auto")],
)
def test_directional_curvature(kind: Any, method: Any) -> None:
    values = []
    for device in (DEVICE, "cpu"):
        model, x, y = on(device, smooth)
        direction = [p.detach().cos() for p in model.parameters()]
        values.append(
            metacurv.directional_curvature(
                model, functional.cross_entropy, x, y, direction, kind=kind, method=method
            )
        )
    assert values[0] == pytest.approx(values[1], rel=1e-7)


def moved(arguments: Any, device: str) -> Any:
    """With numbers in float64."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return leaf.to(device, torch.float64 if leaf.is_floating_point() else None)

    return torch.utils._pytree.tree_map(move, arguments)


@pytest.mark.parametrize("implementation", [KERNELS, TWINS], ids=["native", "reference"])
@pytest.mark.parametrize("name", ["chain_draws", "chain_columns"])
def test_chains_run_without_a_kernel(name: str, implementation: Any) -> None:
    arguments = calls(torch.float64)[name]
    expected = getattr(TWINS, name)(*moved(arguments, "cpu"))
    found = getattr(implementation, name)(*moved(arguments, DEVICE))
    torch.testing.assert_close(found.cpu(), expected, **CLOSE)

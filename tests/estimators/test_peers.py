"""metacurv's traces beside those of BackPACK, NNGeometry, curvlinops and hessian-eigenthings as PyPI has them.

They come with ``pip install ".[benchmark]"``. Without them these tests are skipped, unless METACURV_PEERS=1 forbids it.
"""

from __future__ import annotations

import importlib.util
import os
import statistics
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import metacurv

LIBRARIES = ("asdl", "backpack", "curvlinops", "hessian_eigenthings", "nngeometry", "pyhessian")
LIBRARIES += ("pytorch_optimizer", "sklearn")
missing = [name for name in LIBRARIES if importlib.util.find_spec(name) is None]
if missing and os.environ.get("METACURV_PEERS") != "1":
    pytest.skip(f"to compare with: {', '.join(missing)} not installed", allow_module_level=True)

# The last place to look: the metacurv that is tested need not be the one that lies beside benchmarks/.
sys.path.append(str(Path(__file__).resolve().parents[2]))
from benchmarks.curvature_peers import NAMED  # noqa: E402
from benchmarks.curvature_workloads import CNN, MLP, Workload  # noqa: E402

pytestmark = [
    # The peers' ways: graphs in .grad, hooks, old spellings.
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


def perceptron(activation: type[nn.Module]) -> Workload:
    layers = [nn.Linear(8, 12), activation(), nn.Linear(12, 9), activation(), nn.Linear(9, 4)]
    return workload("mlp", MLP, nn.Sequential(*layers), torch.randn(30, 8), activation is nn.ReLU)


def convolutions() -> Workload:
    layers = [nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2), nn.ReLU(), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(16, 4))
    return workload("cnn", CNN, model, torch.randn(30, 1, 8, 8), piecewise_linear=True)


def workload(
    name: str, family: str, model: nn.Sequential, x: torch.Tensor, piecewise_linear: bool
) -> Workload:
    y = torch.arange(30) % 4
    loss = nn.CrossEntropyLoss()
    return Workload(name, family, False, model, x, y, piecewise_linear, loss)


MAKE = {
    "relu": lambda: perceptron(nn.ReLU),
    "tanh": lambda: perceptron(nn.Tanh),
    "convolutions": convolutions,
}
# (network, kind, peer)
EXACT = [
    ("relu", "hessian", "BackPACK DiagHessian"),
    ("tanh", "hessian", "BackPACK DiagHessian"),
    ("relu", "ggn", "BackPACK DiagGGNExact"),
    ("tanh", "ggn", "BackPACK DiagGGNExact"),
    ("convolutions", "ggn", "BackPACK DiagGGNExact"),
    ("relu", "ggn", "NNGeometry PMatDiag"),
    ("tanh", "ggn", "NNGeometry PMatDiag"),
    ("relu", "ggn", "NNGeometry PMatImplicit"),
]
SAMPLING = [
    ("tanh", "hessian", "curvlinops Hutchinson"),
    ("tanh", "hessian", "hessian-eigenthings Hutchinson"),
    ("tanh", "hessian", "BackPACK HVP"),
    ("convolutions", "ggn", "curvlinops Hutchinson, GGN"),
    ("convolutions", "ggn", "hessian-eigenthings Hutchinson, GGN"),
    ("tanh", "ggn", "BackPACK DiagGGNMC"),
    ("relu", "ggn", "NNGeometry, sampled labels"),
]


def made(network: str) -> Workload:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return MAKE[network]()


def ours(case: Workload, kind: str) -> metacurv.TraceEstimate:
    return metacurv.estimate_trace(case.model, case.loss, case.x, case.y, kind=kind, method="exact")


@pytest.mark.parametrize(("network", "kind", "peer"), EXACT)
def test_exact(network, kind, peer):
    case = made(network)
    assert ours(case, kind).value == pytest.approx(NAMED[peer].make(case, 1)(), rel=1e-4)


@pytest.mark.parametrize(("network", "kind", "peer"), SAMPLING)
def test_sampling(network, kind, peer):
    """Theirs within 4 of its standard errors of ours, which has none."""
    case = made(network)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(6)
        call = NAMED[peer].make(case, 8)
        readings = [call() for _ in range(60)]
    error = statistics.stdev(readings) / len(readings) ** 0.5
    assert error < 0.2 * ours(case, kind).value
    assert abs(statistics.fmean(readings) - ours(case, kind).value) <= 4 * error

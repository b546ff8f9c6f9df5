"""How far samples of finite differences at one step and at twice that are apart, with smooth activations and with kinks.

    python benchmarks/kinks.py

Prints one line a network: the relative difference (``FiniteDifference.disagreement``) as it begins and after 100 steps of
Adam, the largest and the smallest over three seeds. ``estimate_trace`` refuses finite differences above 2 %.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from metacurv.estimators.probes.finite_difference import FiniteDifference
from metacurv.estimators.problem.model_loss import ModelLoss
from metacurv.estimators.problem.parameters import number_parameters

SEEDS = 3
STEPS = 100
ACTIVATIONS = (nn.Tanh, nn.GELU, nn.SiLU, nn.ELU, nn.ReLU, nn.LeakyReLU, nn.Hardtanh)


def perceptron(activation: type[nn.Module]) -> nn.Module:
    layers = [nn.Linear(40, 100), activation(), nn.Linear(100, 100), activation()]
    return nn.Sequential(*layers, nn.Linear(100, 10))


def convolutions() -> nn.Module:
    layers = [nn.Unflatten(1, (1, 5, 8)), nn.Conv2d(1, 8, 3), nn.Tanh(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(24, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{a.__name__: lambda a=a: perceptron(a) for a in ACTIVATIONS},
    "Tanh, max pooling": convolutions,
}


def train(model: nn.Module, x: Tensor, y: Tensor) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def disagreement(model: nn.Module, x: Tensor, y: Tensor) -> float:
    parameters = number_parameters(model.named_parameters(), of_model=True)
    problem = ModelLoss(model, F.cross_entropy, x, y, parameters)
    return FiniteDifference(problem, seed=0, backend="auto").disagreement()


def main() -> int:
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    for name, make in NETWORKS.items():
        fresh, trained = [], []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            x, y = torch.randn(100, 40), torch.randint(10, (100,))
            model = make()
            fresh.append(disagreement(model, x, y))
            train(model, x, y)
            trained.append(disagreement(model, x, y))
        spans = (f"{min(values):8.2%} to {max(values):8.2%}" for values in (fresh, trained))
        print(f"{name:18} {'   trained: '.join(spans)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""These checks use the package as its users do: for a measurement, and for a short training by each rule."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metacurv import MetaCurvatureLR, estimate_trace
from metacurv.self_check.check import Mismatch

_STEPS = 60
_MOST_LEFT = 0.5  # of the first loss, after so many steps; both rules leave less than a third


def trace(backend: str, device: torch.device) -> None:
    """Compares a Hessian's trace, measured without sampling error, with that of the matrix written out in float64."""
    model, x, y = _problem(device, torch.float64)
    estimate = estimate_trace(model, F.cross_entropy, x, y, method="exact", backend=backend)
    expected = _dense_trace(F.cross_entropy(model(x), y), list(model.parameters()))
    if not math.isclose(estimate.value, expected, rel_tol=1e-9):
        raise Mismatch(f"expected {expected!r} to 1e-09, got {estimate.value!r}")


def directional(_backend: str, device: torch.device) -> None:
    """Trains with Adam, whose learning rate the directional rule finds; it calls no op, so there is no choice of backends."""
    model, x, y = _problem(device, torch.float32)
    optimizer = MetaCurvatureLR(
        torch.optim.Adam(model.parameters()),
        model=model,
        loss_fn=F.cross_entropy,
        probe=[(x, y)],
        horizon=_STEPS,
    )
    _train(model, optimizer, x, y)
    if not optimizer.history:
        raise Mismatch(f"expected readings in {_STEPS} steps, got none")


def reciprocal(backend: str, device: torch.device) -> None:
    """Trains with SGD, whose learning rate the reciprocal rule divides by 1 + alpha times the trace."""
    model, x, y = _problem(device, torch.float32)
    optimizer = MetaCurvatureLR(
        torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9),
        alpha=0.1,
        backend=backend,
    )
    _train(model, optimizer, x, y)
    rate = optimizer.effective_lrs[0]
    if not 0 < rate < 1:
        raise Mismatch(f"expected an effective learning rate in (0, 1), got {rate!r}")


def _problem(device: torch.device, dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    """Returns a perceptron, and points of three classes, each about a corner of its own. The random state stays as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).to(device, dtype)
        y = torch.arange(48) % 3
        x = 2 * torch.eye(3, 4)[y] + 0.3 * torch.randn(48, 4)
    return model, x.to(device, dtype), y.to(device)


def _dense_trace(loss: Tensor, parameters: list[nn.Parameter]) -> float:
    """Adds up the diagonal of the Hessian, a row for each parameter."""
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    total = 0.0
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for i, element in enumerate(gradient.flatten()):
            (row,) = torch.autograd.grad(element, parameter, retain_graph=True)
            total += row.flatten()[i].item()
    return total


def _train(model: nn.Module, optimizer: MetaCurvatureLR, x: Tensor, y: Tensor) -> None:
    """Raises ``Mismatch`` where the loss does not fall far enough."""
    first = F.cross_entropy(model(x), y).item()
    for _ in range(_STEPS):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        optimizer.update_curvature(loss)
        torch.autograd.backward(loss)
        optimizer.step()
    last = F.cross_entropy(model(x), y).item()
    if not last < _MOST_LEFT * first:
        raise Mismatch(
            f"expected a loss below {_MOST_LEFT * first:.4g} after {_STEPS} steps from {first:.4g}, got {last:.4g}"
        )


WHOLE: list[tuple[str, Callable[[str, torch.device], None]]] = [
    ("exact trace = trace of the dense Hessian", trace),
    ("training by the directional rule", directional),
    ("training by the reciprocal rule", reciprocal),
]

"""A check is a function with a name; those here use the package as its users do, for a measurement and for trainings."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metacurv import MetaCurvatureLR, estimate_trace

_STEPS = 60
_MOST_LEFT = 0.5  # of the first loss, after so many steps; both rules leave less than a third


class Mismatch(Exception):
    """A result is not what was expected; the message has both."""


@dataclass(frozen=True)
class Check:
    """One line of the self-check.

    Attributes:
        name: what is checked.
        run: raises where it does not hold, ``Mismatch`` where a result is wrong.
    """

    name: str
    run: Callable[[], None]

    def failure(self) -> str:
        """Runs the check, and returns what was expected and what came; "" where all is well."""
        try:
            with threads(1):  # more would mostly wait for each other: all tensors here are small
                self.run()
        except Mismatch as mismatch:
            return str(mismatch)
        except Exception as error:  # a broken installation may raise anything
            lines = str(error).splitlines() or [""]
            return f"expected no exception, got {type(error).__name__}: {lines[0]}"
        return ""


@contextmanager
def threads(n: int) -> Iterator[None]:
    """Torch and the kernels divide their work among ``n`` threads within it."""
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(
    whose: str, results: Sequence[Tensor], expected: Sequence[Tensor], *, rtol: float = 0.0
) -> None:
    """Compares element by element; NaN equals NaN.

    Args:
        whose: results, for the message.
        results: tensors.
        expected: tensors, on any device.
        rtol: the largest error, relative to the largest finite element of the tensor; 0 where bits must agree.

    Raises:
        Mismatch: shapes or dtypes differ, or an element does; the message has the first one.
    """
    for t, (result, target) in enumerate(zip(results, expected, strict=True)):
        where = f" of result {t + 1}" if len(expected) > 1 else ""
        if result.shape != target.shape or result.dtype != target.dtype:
            raise Mismatch(
                f"expected {target.dtype} of shape {tuple(target.shape)}, got {result.dtype} of shape "
                f"{tuple(result.shape)}{where} from {whose}"
            )
        got, want = (x.detach().to("cpu", torch.float64).reshape(-1) for x in (result, target))
        size = want[want.isfinite()].abs().max() if want.isfinite().any() else 0.0
        same = (got == want) | (got.isnan() & want.isnan()) | ((got - want).abs() <= rtol * size)
        if not same.all():
            i = int((~same).nonzero()[0])
            within = f" to {rtol:.0e}" if rtol else ""
            raise Mismatch(
                f"expected {want[i].item()!r}{within}, got {got[i].item()!r} (element {i}{where}) from {whose}"
            )


def whole_checks(backend: str, device: torch.device) -> list[Check]:
    """Returns a check of a trace, and a training by each rule; that of the directional rule calls no op of the backend."""
    return [
        Check("exact trace = trace of the dense Hessian", partial(_trace, backend, device)),
        Check("training by the directional rule", partial(_directional, device)),
        Check("training by the reciprocal rule", partial(_reciprocal, backend, device)),
    ]


def _trace(backend: str, device: torch.device) -> None:
    """Compares a Hessian's trace, measured without sampling error, with that of the matrix written out in float64."""
    model, x, y = _problem(device, torch.float64)
    estimate = estimate_trace(model, F.cross_entropy, x, y, method="exact", backend=backend)
    parameters = list(model.parameters())
    loss = F.cross_entropy(model(x), y)
    expected = 0.0
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        for i, element in enumerate(gradient.flatten()):
            (row,) = torch.autograd.grad(element, parameter, retain_graph=True)
            expected += row.flatten()[i].item()
    if not math.isclose(estimate.value, expected, rel_tol=1e-9):
        raise Mismatch(f"expected {expected!r} to 1e-09, got {estimate.value!r}")


def _directional(device: torch.device) -> None:
    """Trains with Adam, whose learning rate the rule finds."""
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


def _reciprocal(backend: str, device: torch.device) -> None:
    """Trains with SGD, whose learning rate the rule divides by 1 + alpha times the trace."""
    model, x, y = _problem(device, torch.float32)
    base = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    optimizer = MetaCurvatureLR(base, alpha=0.1, backend=backend)
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

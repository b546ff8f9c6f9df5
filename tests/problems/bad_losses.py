"""Losses whose curvature cannot be measured, by what is wrong with them; ``loss`` is named in every message."""

from __future__ import annotations

import torch

from metacurv import NotTwiceDifferentiableError
from tests.problems.once_differentiable import OnceDifferentiable

INF, NAN = float("inf"), float("nan")


def weight():
    return torch.tensor([[1.0, -2.0, 0.5], [0.1, 0.2, 0.3]], requires_grad=True)


def freed(w):
    loss = (w**3).sum()
    loss.backward()
    w.grad = None
    return loss


# What is wrong -> (loss from the parameter, error, message).
LOSSES = {
    "a number": (lambda w: 3.0, TypeError, "loss must be a Tensor, got float 3.0"),
    "None": (lambda w: None, TypeError, "loss must be a Tensor, got NoneType"),
    "a list": (lambda w: [(w**2).sum()], TypeError, "loss must be a Tensor, got list"),
    "a vector": (lambda w: w[0] ** 2, ValueError, r"loss must be a scalar, got shape \(3,\)"),
    "empty": (lambda w: w[:0] ** 2, ValueError, r"loss must be a scalar, got shape \(0, 3\)"),
    "detached": (lambda w: (w**2).sum().detach(), ValueError, "loss must carry a graph.* detached"),
    "without a graph": (lambda w: torch.tensor(3.0), ValueError, "loss must carry a graph"),
    "a leaf": (
        lambda w: torch.tensor(3.0, requires_grad=True),
        ValueError,
        "loss must carry a graph",
    ),
    "complex": (lambda w: (w * 1j).sum(), TypeError, "loss must be float32.* got torch.complex64"),
    "an integer": (lambda w: torch.tensor(3), TypeError, "loss must be float32.* got torch.int64"),
    "sparse": (
        lambda w: (w**2).sum().view(1).to_sparse(),
        TypeError,
        "loss must be a dense",
    ),
    "nan": (lambda w: (w**2).sum() * NAN, ValueError, "loss must be finite, got nan"),
    "inf": (lambda w: (w**2).sum() * INF, ValueError, "loss must be finite, got inf"),
    "-inf": (lambda w: (w**2).sum() * -INF, ValueError, "loss must be finite, got -inf"),
    "independent": (
        lambda w: (torch.ones(2, requires_grad=True) ** 2).sum(),
        ValueError,
        "loss must depend on params.* none of them",
    ),
    "freed": (freed, ValueError, "loss has been freed: measure curvature before"),
    "once differentiable": (
        lambda w: (OnceDifferentiable.apply(w) ** 2).sum(),
        NotTwiceDifferentiableError,
        "second derivatives",
    ),
}

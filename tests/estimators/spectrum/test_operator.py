"""curvature_operator: forms of vectors, batches, what it keeps, and what it leaves alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from metacurv import NotTwiceDifferentiableError, curvature_operator, top_eigenvalues
from tests.estimators.dense.case import Lambda, labels
from tests.helpers import assert_same
from tests.problems.once_differentiable import OnceCube
from tests.problems.problem import fixed, rand

X, Y = fixed(6, 3), labels(6)


def network(middle: nn.Module | None = None) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), middle or nn.Tanh(), nn.Linear(4, 3)).double()


def identity(operator) -> torch.Tensor:
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


def whole(model: nn.Module, **options) -> torch.Tensor:
    return identity(curvature_operator(model, F.cross_entropy, X, Y, **options))


def test_forms_of_vectors():
    operator = curvature_operator(network(), F.cross_entropy, X, Y)
    flat = rand(operator.shape[0])
    product = operator @ flat
    assert operator.n_products == 1
    assert product.shape == flat.shape
    block = operator @ torch.stack([flat, 2 * flat], dim=1)
    torch.testing.assert_close(block, torch.stack([product, 2 * product], dim=1))
    parts = operator @ operator.to_dict(flat)
    assert {name: x.shape for name, x in parts.items()} == {
        name: p.shape for name, p in network().named_parameters()
    }
    torch.testing.assert_close(torch.cat([x.flatten() for x in parts.values()]), product)
    assert operator.n_products == 4
    assert repr(operator).startswith("CurvatureOperator(kind='hessian', shape=(31, 31)")


def test_scipy_finds_the_same_eigenvalues():
    from scipy.sparse.linalg import eigsh

    operator = curvature_operator(network(), F.cross_entropy, X, Y)
    found = eigsh(operator.to_scipy(), k=2, which="LA", return_eigenvectors=False)
    expected = torch.linalg.eigvalsh(identity(operator))[-2:]
    torch.testing.assert_close(torch.from_numpy(found), expected)
    backwards = operator.to_scipy() @ np.arange(31.0)[::-1]
    torch.testing.assert_close(
        torch.from_numpy(backwards), operator @ torch.arange(31.0).double().flip(0)
    )
    half = curvature_operator(network().bfloat16(), F.cross_entropy, X.bfloat16(), Y).to_scipy()
    assert (half @ np.ones(31)).dtype == np.float32


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_batches_are_weighted_by_their_sizes(kind):
    model, expected = network(), whole(network(), kind=kind)
    pairs = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    loader = DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)
    for batches in (pairs, iter(pairs), loader):
        operator = curvature_operator(model, F.cross_entropy, batches, kind=kind)
        for _ in range(2):  # an iterator is used up, and a loader shuffles
            torch.testing.assert_close(identity(operator), expected)


def test_sums_add_up():
    loss = nn.CrossEntropyLoss(reduction="sum")
    pairs = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    operator = curvature_operator(network(), loss, pairs)
    torch.testing.assert_close(identity(operator), 6 * whole(network()))


def changed_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.mul_(2)


def changed_as_data(model: nn.Module) -> None:
    model[0].weight.data.mul_(2)


def changed_where_frozen(model: nn.Module) -> None:
    model[2].bias.data.add_(torch.arange(3.0))


def stepped(model: nn.Module) -> None:
    opt = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    F.cross_entropy(model(X), Y).backward()
    opt.step()
    opt.zero_grad()


@pytest.mark.parametrize(
    "change", [changed_in_place, changed_as_data, changed_where_frozen, stepped]
)
def test_a_model_that_changed_is_seen(change):
    """Version numbers of parameters do not tell all of these."""
    model = network()
    model[2].bias.requires_grad_(change is not changed_where_frozen)
    operator = curvature_operator(model, F.cross_entropy, X, Y)
    before = identity(operator)
    change(model)
    after = identity(operator)
    assert not torch.allclose(before, after)
    torch.testing.assert_close(after, whole(model))


def test_a_mode_that_changed_is_seen():
    model = network(nn.BatchNorm1d(4))
    operator = curvature_operator(model, F.cross_entropy, X, Y)
    before = identity(operator)
    model.eval()
    torch.testing.assert_close(identity(operator), whole(model))
    assert not torch.allclose(before, identity(operator))


@pytest.mark.parametrize("batches", [1, 2])
def test_dropout_keeps_its_mask(batches):
    """Whatever random numbers the user draws between products."""
    model = network(nn.Dropout(0.5))
    size = 6 // batches
    pairs = [(X[i : i + size], Y[i : i + size]) for i in range(0, 6, size)]
    operator = curvature_operator(model, F.cross_entropy, pairs)
    first = identity(operator)
    torch.randn(100)
    torch.testing.assert_close(identity(operator), first)


def test_other_parameters_are_named():
    model = network()
    operator = curvature_operator(model, F.cross_entropy, X, Y)
    model[0].bias.requires_grad_(False)
    with pytest.raises(ValueError, match="must be those of when the operator was made, "):
        operator @ torch.ones(31)


def test_autocast():
    """Products are those of the forward pass's dtypes; the space is not."""
    model = network().float()
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.warns(UserWarning, match="rounding"):
        found = top_eigenvalues(model, F.cross_entropy, X.float(), Y, k=2)
    exact = top_eigenvalues(network(), F.cross_entropy, X, Y, k=2)
    assert not found.converged
    assert (found.values[0] - exact.values[0]).abs() <= found.errors[0]


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_the_model_stays_as_it_was(kind):
    model = network(nn.BatchNorm1d(4))
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    random = torch.get_rng_state()
    with torch.no_grad(), torch.inference_mode():
        whole(model, kind=kind)
    assert_same(dict(model.state_dict()), before)
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert all(p.grad is None for p in list(model.parameters())[1:])


def test_half_precision_is_multiplied_in_its_own():
    model = network().bfloat16()
    operator = curvature_operator(model, F.cross_entropy, X.bfloat16(), Y)
    product = operator @ torch.ones(operator.shape[0])
    assert product.dtype == operator.dtype == torch.bfloat16
    expected = whole(network()) @ torch.ones(operator.shape[0], dtype=torch.float64)
    torch.testing.assert_close(product.double(), expected, rtol=0, atol=0.1)


VECTORS = {
    "a number": (lambda n: 3, TypeError, "the vector of a product must be a Tensor, got int 3"),
    "whole numbers": (lambda n: torch.ones(n, dtype=torch.int64), TypeError, "int64"),
    "too short": (lambda n: torch.ones(n - 1), ValueError, r"\[31\] or \[31, K\], got \[30\]"),
    "three axes": (lambda n: torch.ones(n, 1, 1), ValueError, r"got \[31, 1, 1\]"),
    "another device": (lambda n: torch.ones(n, device="meta"), ValueError, "device cpu, got meta"),
    "lacks a part": (lambda n: {"0.bias": torch.ones(4)}, ValueError, "'0.weight', '0.bias'"),
    "another shape": (
        lambda n: {name: torch.ones(1) for name, _ in network().named_parameters()},
        ValueError,
        r"part '0.weight' must have the parameter's shape \[4, 3\]",
    ),
}


@pytest.mark.parametrize("name", VECTORS)
def test_bad_vectors(name):
    make, error, message = VECTORS[name]
    operator = curvature_operator(network(), F.cross_entropy, X, Y)
    with pytest.raises(error, match=message):
        operator @ make(operator.shape[0])


def test_bad_arguments():
    model = network()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int 1"):
        curvature_operator(1, F.cross_entropy, X, Y)
    with pytest.raises(ValueError, match="kind must be 'hessian' or 'ggn', got str 'fisher'"):
        curvature_operator(model, F.cross_entropy, X, Y, kind="fisher")
    with pytest.raises(ValueError, match="max_memory must be >= 1, got 0"):
        curvature_operator(model, F.cross_entropy, X, Y, max_memory=0)
    with pytest.raises(ValueError, match="inputs must give at least one batch, got none"):
        identity(curvature_operator(model, F.cross_entropy, []))
    with pytest.raises(ValueError, match=r"flat must have the shape \[31\], got \[3\]"):
        curvature_operator(model, F.cross_entropy, X, Y).to_dict(torch.ones(3))
    with pytest.raises(NotTwiceDifferentiableError):
        whole(network(Lambda(OnceCube.apply)))
    nested = curvature_operator(lambda_model(), lambda out, y: F.cross_entropy(out[0], y), X, Y)
    assert identity(nested).shape == nested.shape
    with pytest.raises(ValueError, match="the Gauss-Newton matrix needs a model whose output"):
        identity(
            curvature_operator(
                lambda_model(), lambda out, y: F.cross_entropy(out[0], y), X, Y, kind="ggn"
            )
        )


def lambda_model() -> nn.Module:
    """A network that returns a tuple."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = network()

        def forward(self, x):
            return self.inner(x), x

    return Pair()

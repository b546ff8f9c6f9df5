"""top_eigenvalues: the choice of a method, layers, vectors, and arguments."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metacurv import curvature_operator, top_eigenvalues
from tests.estimators.dense.case import labels
from tests.problems.problem import fixed, rand

X, Y = fixed(20, 5), labels(20)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)).double()


def top(**options):
    return top_eigenvalues(network(), F.cross_entropy, X, Y, **options)


def dense(kind: str) -> torch.Tensor:
    operator = curvature_operator(network(), F.cross_entropy, X, Y, kind=kind)
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


@pytest.mark.parametrize("method", ["gram", "lanczos"])
def test_layers_and_vectors(method):
    matrix = dense("ggn")
    found = top(kind="ggn", k=3, vectors=True, by_layer=True, method=method, rtol=1e-9)
    assert list(found.per_layer) == ["0", "2"]
    for part, rows in ((found, slice(0, 75)), (found.per_layer["0"], slice(0, 48))):
        expected = torch.linalg.eigvalsh(matrix[rows, rows]).flip(0)[:3]
        torch.testing.assert_close(part.values, expected, rtol=1e-8, atol=0)
        assert part.vectors.shape == (75, 3)
        gram = part.vectors.t() @ part.vectors
        torch.testing.assert_close(gram, torch.eye(3, dtype=torch.float64))
        own = part.vectors[rows]
        torch.testing.assert_close(matrix[rows, rows] @ own, own * part.values, atol=1e-5, rtol=0)
    assert not found.per_layer["2"].vectors[:48].any()
    assert top(kind="ggn").vectors is None


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("method", ["gram", "lanczos"])
def test_batches(method, reduction):
    """They are of 6 and 14 examples, and count by these where the loss is a mean."""
    loss_fn = nn.CrossEntropyLoss(reduction=reduction)
    pairs = [(X[:6], Y[:6]), (X[6:], Y[6:])]
    found = top_eigenvalues(
        network(), loss_fn, pairs, kind="ggn", k=3, vectors=True, method=method, rtol=1e-9
    )
    assert found.method == method
    matrix = dense("ggn") * (20 if reduction == "sum" else 1)
    expected = torch.linalg.eigvalsh(matrix).flip(0)[:3]
    torch.testing.assert_close(found.values, expected, rtol=1e-8, atol=0)
    own = found.vectors
    torch.testing.assert_close(matrix @ own, own * found.values, rtol=0, atol=1e-4)


def test_the_hessian_of_a_relu_network_is_not_its_ggn():
    """They have the trace in common, and no more: so the Gram matrix is not asked."""
    found = top(k=2)
    assert found.method == "lanczos"
    assert "not gram: the Hessian has no such factor" in found.why
    expected = torch.linalg.eigvalsh(dense("hessian"))
    by_size = expected[expected.abs().argsort(descending=True)][:2]
    torch.testing.assert_close(found.values, by_size, rtol=1e-3, atol=0)


def test_ends_of_the_spectrum():
    values = torch.linalg.eigvalsh(dense("hessian"))
    high = top(k=3, largest="algebraic", rtol=1e-6)
    torch.testing.assert_close(high.values, values.flip(0)[:3], rtol=1e-5, atol=0)
    size = top(k=3, largest="magnitude", rtol=1e-6)
    by_size = values[values.abs().argsort(descending=True)][:3]
    torch.testing.assert_close(size.values, by_size, rtol=1e-5, atol=0)


@pytest.mark.parametrize("method", ["auto", "lanczos"])
def test_beyond_the_rank_there_are_zeros(method):
    """Six columns of two examples with three classes have rank four; the fifth value of the matrix is 0."""
    found = top_eigenvalues(
        network(), F.cross_entropy, X[:2], Y[:2], kind="ggn", k=6, vectors=True, method=method
    )
    assert (found.values[:4] > 1e-6).all()
    assert (found.values[4:].abs() <= found.errors[4:]).all()
    gram = found.vectors.t() @ found.vectors
    torch.testing.assert_close(gram, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-8)


def test_more_eigenvalues_than_a_layer_has():
    model = nn.Sequential(nn.Linear(5, 3), nn.LayerNorm(3, bias=False)).double()
    found = top_eigenvalues(model, F.cross_entropy, X, Y, k=10, by_layer=True, rtol=1e-6)
    assert len(found.values) == 10
    assert len(found.per_layer["1"].values) == 3


@pytest.mark.parametrize("method", ["gram", "lanczos"])
def test_repeated_values_of_a_regression(method):
    """Three outputs share one matrix of inputs: each of its values is there three times."""
    model = nn.Linear(4, 3, bias=False).double()
    x, y = rand(9, 4), rand(9, 3)
    found = top_eigenvalues(model, nn.MSELoss(), x, y, kind="ggn", k=6, method=method, rtol=1e-7)
    single = torch.linalg.eigvalsh(2 * x.t() @ x / 27).flip(0)
    expected = single.repeat_interleave(3)[:6]
    torch.testing.assert_close(found.values, expected)


def test_it_says_where_it_stopped():
    with pytest.warns(UserWarning, match="stopped at max_products=2, before the errors came down"):
        found = top(k=2, max_products=2, rtol=1e-9)
    assert (found.converged, found.n_products) == (False, 2)


def test_memory_bounds_the_space():
    """Ten vectors of 75 numbers; the same values for more products."""
    small = top(k=2, max_memory=10 * 75 * 8, rtol=1e-6)
    large = top(k=2, rtol=1e-6)
    torch.testing.assert_close(small.values, large.values, rtol=1e-5, atol=0)
    assert small.n_products >= large.n_products


def test_text():
    assert str(top(kind="ggn")).endswith("(gram, exact)")
    assert str(top()).startswith("eigenvalues(hessian) = ")
    assert "products)" in str(top())


def test_a_progress_bar(capsys):
    top(progress=True)
    assert "eigenvalues" in capsys.readouterr().err
    top(progress=False)
    assert capsys.readouterr().err == ""


BAD = {
    "k": ({"k": 76}, ValueError, r"k must be in \[1, 76\), got 76"),
    "no k": ({"k": 0}, ValueError, r"k must be in \[1, 76\), got 0"),
    "largest": ({"largest": "LM"}, ValueError, "largest must be one of magnitude, algebraic, got"),
    "rtol": ({"rtol": 0}, ValueError, "rtol must be a finite number > 0 and < 1, got 0.0"),
    "products": ({"max_products": 0}, ValueError, "max_products must be >= 1, got 0"),
    "seed": ({"seed": -1}, ValueError, "seed must be in"),
    "method": ({"method": "power"}, ValueError, "method must be one of auto, gram, lanczos, got"),
    "few products": ({"k": 5, "max_products": 3}, ValueError, "max_products must be at least k=5"),
    "vectors": ({"vectors": "no"}, TypeError, "vectors must be True or False, got str 'no'"),
    "memory": (
        {"max_memory": 99},
        ValueError,
        "max_memory must hold 8 vectors of the matrix for k=1",
    ),
    "gram": ({"method": "gram"}, ValueError, "method='gram' is not right for this model and kind="),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        top(**options)

"""diagonal: errors that are honest, batches, what "auto" takes, and arguments."""

from __future__ import annotations

import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metacurv import curvature_operator, diagonal, estimate_trace
from metacurv.estimators.spectrum.diagonals import norms
from tests.estimators.dense.case import labels
from tests.helpers import assert_same
from tests.problems.problem import fixed

X, Y = fixed(12, 5), labels(12)
MIDDLES = {"relu": nn.ReLU, "tanh": nn.Tanh, "norm": lambda: nn.LayerNorm(6)}


def network(name: str = "relu", layers: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    inner = [part for _ in range(layers - 1) for part in (nn.Linear(6, 6), MIDDLES[name]())]
    return nn.Sequential(nn.Linear(5, 6), MIDDLES[name](), *inner, nn.Linear(6, 3)).double()


def truth(model: nn.Module, kind: str) -> Tensor:
    operator = curvature_operator(model, F.cross_entropy, X, Y, kind=kind)
    return (operator @ torch.eye(operator.shape[0], dtype=torch.float64)).diagonal()


def flat(parts) -> Tensor:
    return torch.cat([x.flatten() for x in parts.values()])


@pytest.mark.parametrize(
    ("name", "kind", "method"),
    [
        ("relu", "hessian", "exact"),
        ("relu", "ggn", "exact"),
        ("tanh", "hessian", "exact"),
        ("norm", "ggn", "exact"),
        ("norm", "hessian", "hutchinson"),
    ],
)
def test_auto(name, kind, method):
    model = network(name, layers=4)
    found = diagonal(model, F.cross_entropy, X, Y, kind=kind)
    assert (found.method, found.kind) == (method, kind)
    assert found.why
    if method == "exact":
        torch.testing.assert_close(flat(found), truth(model, kind))
        assert found.n_samples == 0
    else:
        assert "not exact: " in found.why
        assert found.n_samples == 100


@pytest.mark.parametrize("method", ["activation", "hutchinson"])
@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_errors_are_honest(kind, method):
    """Over seeds, an entry is off by its standard error, in the root mean square."""
    model = network("tanh")
    expected, off = truth(model, kind), []
    for seed in range(30):
        found = diagonal(
            model, F.cross_entropy, X, Y, kind=kind, method=method, n_samples=40, seed=seed
        )
        off.append(((flat(found) - expected).square().sum(), flat(found.stderr).square().sum()))
    distances, errors = torch.tensor(off).sum(0)
    assert 0.8 <= distances / errors <= 1.25


def test_it_adds_up_to_the_trace():
    found = diagonal(network(), F.cross_entropy, X, Y)
    trace = estimate_trace(network(), F.cross_entropy, X, Y)
    assert found.per_layer == pytest.approx(trace.per_layer)
    assert set(found.per_layer_stderr.values()) == {0.0}
    assert list(found) == list(trace.per_parameter)


@pytest.mark.parametrize("method", ["auto", "hutchinson"])
def test_batches(method):
    """Of sizes 4 and 8; their samples are independent."""
    model = network()
    pairs = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    found = diagonal(model, F.cross_entropy, iter(pairs), method=method, n_samples=300)
    expected = truth(model, "hessian")
    if method == "auto":
        torch.testing.assert_close(flat(found), expected)
        return
    assert found.n_samples == 600
    errors = flat(found.stderr)
    assert (flat(found) - expected).norm() <= 2 * errors.norm()
    one = diagonal(model, F.cross_entropy, *pairs[0], method=method, n_samples=300)
    assert errors.norm() >= flat(one.stderr).norm() / 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("method", ["exact", "activation", "hutchinson"])
def test_narrow_dtypes(method, dtype):
    model = network().to(dtype)
    found = diagonal(model, F.cross_entropy, X.to(dtype), Y, kind="ggn", method=method, n_samples=9)
    assert {x.dtype for x in found.values()} == {dtype}
    total = sum(x.double().sum().item() for x in found.values())
    assert sum(found.per_layer.values()) == pytest.approx(total, rel=0.02)


@pytest.mark.parametrize("method", ["activation", "hutchinson"])
def test_errors_of_layers_are_honest(method):
    """Entries of one layer err together, so that the error of their sum does not follow from theirs."""
    model, off = network("tanh"), []
    expected = estimate_trace(model, F.cross_entropy, X, Y).per_layer
    for seed in range(60):
        found = diagonal(model, F.cross_entropy, X, Y, method=method, n_samples=40, seed=seed)
        pairs = [(found.per_layer[n] - expected[n], found.per_layer_stderr[n]) for n in expected]
        off.append(pairs)
    distances, errors = torch.tensor(off).square().sum(0).t()
    assert ((distances / errors) > 0.6).all()
    assert ((distances / errors) < 1.6).all()


def test_rtol():
    """The norm of the errors is counted against that of the true diagonal, without what noise adds to the measured one."""
    model = network("norm")
    expected = truth(model, "hessian")
    found = diagonal(model, F.cross_entropy, X, Y, method="hutchinson", rtol=0.2)
    assert found.converged
    assert 16 < found.n_samples < 10_000
    assert 0.15 < flat(found.stderr).norm() / expected.norm() < 0.21
    assert (flat(found) - expected).norm() < 0.4 * expected.norm()
    again = diagonal(model, F.cross_entropy, X, Y, method="hutchinson", n_samples=found.n_samples)
    assert_same(dict(again), dict(found))


def test_norms_by_hand():
    """Noise of squared errors 9 and 0 adds 9 to the square of a norm, here 25."""
    of = torch.tensor([[3.0, 4.0], [9.0, 0.0]], dtype=torch.float64)
    assert norms(*of) == (4.0, 3.0)


def test_rtol_over_batches():
    pairs = [(X[:4], Y[:4]), (X[4:], Y[4:])]
    found = diagonal(network("norm"), F.cross_entropy, pairs, method="hutchinson", rtol=0.3)
    assert found.converged
    assert flat(found.stderr).norm() < 0.3 * flat(found).norm()


@pytest.mark.parametrize(
    ("most", "rtol", "words"),
    [
        (
            1,
            0.5,
            "diagonal stopped at max_samples=1, with standard errors of norm nan on a diagonal of norm nan",
        ),
        (15, 0.9, "rtol takes 16 samples at least"),
        (40, 1e-3, "honest but rougher than rtol=0.001"),
        (40, 1e-160, "diagonal stopped at max_samples=40"),
    ],
)
def test_rtol_out_of_reach(most, rtol, words):
    model = network("norm")
    with pytest.warns(UserWarning, match=words):
        found = diagonal(
            model, F.cross_entropy, X, Y, method="hutchinson", rtol=rtol, max_samples=most
        )
    assert (found.n_samples, found.converged) == (most, False)


def test_batches_that_cancel():
    """The second loss is the first one with its sign turned."""

    def loss_fn(out: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(out, y) * (1 if len(y) == 5 else -5 / 7 * 1.01)

    pairs = [(X[:5], Y[:5]), (torch.cat([X[:5], X[:2]]), torch.cat([Y[:5], Y[:2]]))]
    with pytest.warns(UserWarning, match="diagonal found batches whose diagonals cancel"):
        found = diagonal(network("norm"), loss_fn, pairs, method="hutchinson", rtol=0.3)
    assert not found.converged


def test_rtol_takes_columns_where_samples_would_be_more():
    """There are 300 columns, and 100 samples without a tolerance; with one, 400 at least."""
    model = nn.Sequential(nn.Linear(5, 9), nn.ReLU(), nn.Linear(9, 301)).double()
    few = diagonal(model, F.cross_entropy, X, Y)
    assert (few.method, few.n_samples) == ("activation", 100)
    found = diagonal(model, F.cross_entropy, X, Y, rtol=0.05)
    assert (found.method, found.converged) == ("exact", True)
    assert diagonal(model, F.cross_entropy, X, Y, rtol=0.5).method == "activation"
    assert diagonal(model, F.cross_entropy, X, Y, rtol=0.5, n_samples=400).method == "exact"


def test_one_sample_knows_no_error():
    found = diagonal(network(), F.cross_entropy, X, Y, method="hutchinson", n_samples=1)
    assert flat(found.stderr).isnan().all()


def test_text():
    found = diagonal(network(), F.cross_entropy, X, Y, method="hutchinson", n_samples=20)
    share = (flat(found.stderr).norm() / flat(found).norm()).item()
    assert repr(found) == (
        f"Diagonal(6 tensors, 99 entries; hessian, hutchinson, 20 samples, errors {share:.2g} of its norm)"
    )


def test_a_copy_keeps_all():
    found = diagonal(network(), F.cross_entropy, X, Y, n_samples=7)
    again = pickle.loads(pickle.dumps(found))
    assert_same(dict(again), dict(found))
    assert again.why == found.why
    assert repr(found) == "Diagonal(6 tensors, 99 entries; hessian, exact)"


def test_bad_arguments():
    model = network("norm")
    with pytest.raises(ValueError, match="method='exact' is not right for this model and kind="):
        diagonal(model, F.cross_entropy, X, Y, method="exact")
    with pytest.raises(ValueError, match="method must be one of auto, exact, activation, hutch"):
        diagonal(model, F.cross_entropy, X, Y, method="finite_difference")
    with pytest.raises(ValueError, match="n_samples must be"):
        diagonal(model, F.cross_entropy, X, Y, n_samples=0)
    with pytest.raises(ValueError, match=r"rtol must be a finite number > 0 and < 1, got 1\.0"):
        diagonal(model, F.cross_entropy, X, Y, rtol=1)
    with pytest.raises(ValueError, match="max_samples must be at least n_samples=9 where rtol"):
        diagonal(model, F.cross_entropy, X, Y, rtol=0.1, n_samples=9, max_samples=8)

"""spectral_density: the band covers the truth as often as it says, and what follows from it is right within its errors."""

from __future__ import annotations

import copy
import math
import pickle

import matplotlib as mpl
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from metacurv import Measured, curvature_operator, spectral_density
from metacurv.estimators.spectrum.density import Grid, band, smoothing
from metacurv.estimators.spectrum.quadrature import quadratures
from tests.estimators.dense.case import labels
from tests.problems.problem import fixed

X, Y = fixed(30, 5), labels(30)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3)).double()


def dense(kind: str = "hessian") -> torch.Tensor:
    operator = curvature_operator(network(), F.cross_entropy, X, Y, kind=kind)
    return operator @ torch.eye(operator.shape[0], dtype=torch.float64)


def density(**options):
    return spectral_density(network(), F.cross_entropy, X, Y, **options)


def coverage(matrix: torch.Tensor, probes: int, runs: int, steps: int = 40) -> float:
    """The share of places, over runs, at which the band holds the smoothed density of the matrix."""
    n = len(matrix)
    values = torch.linalg.eigvalsh(matrix)
    span = (values[-1] - values[0]).item()
    width = 1.2 * span / steps
    places = torch.linspace(values[0] - width, values[-1] + width, 100, dtype=torch.float64)
    grid = Grid(places, width, n)
    truth = smoothing(values, grid).mean(1)
    seen = truth > 1e-4 * truth.max()
    generator = torch.Generator().manual_seed(3)
    held = []
    for _ in range(runs):
        found = []
        for _ in range(probes):
            probe = torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1
            found.append(quadratures(lambda v: matrix @ v, probe, steps, 2e-16, lambda: None))
        _, lower, upper = band(found, grid)
        held.append(((lower <= truth) & (truth <= upper))[seen].double().mean().item())
    return sum(held) / runs


@pytest.mark.parametrize("probes", [3, 10])
def test_the_band_is_calibrated(probes):
    assert 0.93 <= coverage(dense(), probes, runs=100) <= 0.97


def test_the_density_is_that_of_the_eigenvalues():
    """As many products as the matrix has rows see all of it, so that only the probes' chance is left."""
    matrix = dense()
    found = density(steps=len(matrix), n_samples=40, width=0.05)
    values = torch.linalg.eigvalsh(matrix)
    grid = Grid(found.grid, 0.05, len(values))
    truth = smoothing(values, grid).mean(1)
    assert float(torch.trapezoid(found.density, found.grid)) == pytest.approx(1, abs=1e-3)
    inside = (found.lower <= truth) & (truth <= found.upper)
    assert (
        inside.double().mean() > 0.7
    )  # places of one run go together; the calibration is tested above
    assert float(torch.trapezoid((found.density - truth).abs(), found.grid)) < 0.2
    assert (found.method, found.n_samples, found.n) == ("lanczos", 40, len(values))
    assert found.n_products <= 40 * len(matrix)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_what_follows_from_it(kind):
    values = torch.linalg.eigvalsh(dense(kind))
    damping = 1.0
    found = density(kind=kind, method="lanczos", n_samples=30, seed=2)
    expected = {
        "log_determinant": (values + damping).log().sum(),
        "effective_dimension": (values / (values + damping)).sum(),
        "frobenius_norm": values.norm(),
        "trace": values.sum(),
    }
    got = {
        "log_determinant": found.log_determinant(damping),
        "effective_dimension": found.effective_dimension(damping),
        "frobenius_norm": found.frobenius_norm,
        "trace": found.trace,
    }
    for name, value in expected.items():
        assert 0 < got[name].stderr < 0.3 * abs(value.item()) + 1, name
        assert abs(got[name] - value.item()) <= 4 * got[name].stderr, name
    if kind == "ggn":
        exact = density(kind=kind, by_layer=True)
        assert exact.method == "gram"
        assert exact.log_determinant(damping) == pytest.approx(expected["log_determinant"].item())
        assert exact.frobenius_norm.stderr <= 1e-9
        assert exact.frobenius_norm == pytest.approx(values.norm().item())
        assert torch.equal(exact.lower, exact.upper)
        assert sum(layer.trace for layer in exact.per_layer.values()) == pytest.approx(exact.trace)


def test_errors_are_honest():
    """Over seeds, what follows from a density is off by its standard error, in the root mean square."""
    values = torch.linalg.eigvalsh(dense())
    expected = torch.stack(
        [(values + 1).log().sum(), (values / (values + 1)).sum(), values.norm(), values.sum()]
    )
    off, errors = [], []
    for seed in range(40):
        found = density(n_samples=6, steps=16, seed=seed)
        got = [
            found.log_determinant(1.0),
            found.effective_dimension(1.0),
            found.frobenius_norm,
            found.trace,
        ]
        off.append(torch.tensor([float(x) for x in got], dtype=torch.float64) - expected)
        errors.append(torch.tensor([x.stderr for x in got], dtype=torch.float64))
    ratios = torch.stack(off).square().mean(0) / torch.stack(errors).square().mean(0)
    assert ((ratios > 0.6) & (ratios < 1.6)).all(), ratios


def test_the_quadratures_error_is_counted():
    """With few products a small damping makes the log of the smallest eigenvalues wrong, whatever the number of probes."""
    damping = 1e-6
    found = density(kind="ggn", method="lanczos", n_samples=20, steps=6)
    logs = [
        [75 * (q.weights @ (q.nodes.clamp(min=0) + damping).log()).item() for q in probe[:2]]
        for probe in found.quadratures
    ]
    whole, part = torch.tensor(logs).mean(0)
    got = found.log_determinant(damping)
    assert got == pytest.approx(whole.item(), rel=1e-3)
    assert abs(whole - part) > 1
    assert got.stderr >= abs(whole - part)


def test_one_probe_has_a_band():
    found = density(n_samples=1)
    assert (found.lower < found.upper).any()
    assert math.isnan(found.trace.stderr)


def test_rtol():
    rough, fine = density(rtol=0.9, steps=10), density(rtol=0.15, steps=10, max_samples=200)
    assert rough.n_samples < fine.n_samples < 200
    half = float(torch.trapezoid((fine.upper - fine.lower) / 2, fine.grid))
    assert half <= 0.15
    with pytest.warns(UserWarning, match="stopped at max_samples=12 with a band of"):
        density(rtol=0.01, max_samples=12, steps=5)


def test_layers():
    found = density(by_layer=True, n_samples=4, steps=12)
    assert list(found.per_layer) == ["0", "2"]
    assert {name: layer.n for name, layer in found.per_layer.items()} == {"0": 48, "2": 27}


def test_the_seed_decides():
    one, same, other = (density(n_samples=2, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.density, same.density)
    assert not torch.equal(one.density, other.density)


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_the_picture(kind, tmp_path):
    mpl.use("Agg")
    found = density(kind=kind, n_samples=3, steps=20)
    axes = found.plot()
    axes.figure.savefig(tmp_path / "density.png")
    assert (tmp_path / "density.png").stat().st_size > 10_000
    assert axes.get_yscale() == "log"
    assert axes.get_title() == (
        "spectrum of the Hessian (lanczos)"
        if kind == "hessian"
        else "spectrum of the Gauss-Newton matrix (gram)"
    )
    low, high = found.ends
    assert str(found).startswith(
        f"spectral density({kind}) of 75 eigenvalues between {low:.4g} and {high:.4g}"
    )


@pytest.mark.parametrize("kind", ["hessian", "ggn"])
def test_the_ends_of_the_spectrum(kind):
    """They are those of the eigenvalues, and not of the grid, which has room for bells."""
    values = torch.linalg.eigvalsh(dense(kind))
    found = density(kind=kind, n_samples=4)
    assert found.ends == pytest.approx((values[0].item(), values[-1].item()), abs=1e-3)
    assert float(found.grid[0]) < found.ends[0] - found.width


def test_a_number_with_its_error():
    number = Measured(2.5, 0.125)
    assert repr(number) == str(number) == "2.5 +- 0.12"
    assert str(Measured(2.5, 0.0)) == "2.5 (exact)"
    assert (number + 1, number.value, number.stderr) == (3.5, 2.5, 0.125)
    for other in (pickle.loads(pickle.dumps(number)), copy.deepcopy(number)):
        assert (other, other.stderr) == (2.5, 0.125)


BAD = {
    "steps": ({"steps": 1}, ValueError, "steps must be >= 2, got 1"),
    "points": ({"points": 1}, ValueError, "points must be >= 2, got 1"),
    "few points": ({"points": 10}, ValueError, "points must be at least .* for bells of width"),
    "thin bells": ({"width": 1e-9}, ValueError, "width must be at least .* for eigenvalues over"),
    "by_layer": ({"by_layer": 1}, TypeError, "by_layer must be True or False, got int 1"),
    "width": ({"width": 0}, ValueError, "width must be a finite number > 0, got 0.0"),
    "rtol": ({"rtol": 1.5}, ValueError, "rtol must be a finite number > 0 and < 1"),
    "n_samples": ({"n_samples": 0}, ValueError, "n_samples must be >= 1, got 0"),
    "method": ({"method": "exact"}, ValueError, "method must be one of auto, gram, lanczos"),
    "gram": ({"method": "gram"}, ValueError, "method='gram' is not right for this model and kind="),
    "memory": ({"max_memory": 100}, ValueError, "max_memory must hold three vectors of"),
    "progress": ({"progress": 1}, TypeError, "progress must be True, False or None, got int 1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, error, message = BAD[name]
    with pytest.raises(error, match=message):
        density(**options)


def test_damping_that_leaves_no_logarithm():
    found = density(n_samples=2)
    with pytest.raises(ValueError, match=r"damping must be above 0\.\d"):
        found.log_determinant(0)
    with pytest.raises(ValueError, match=r"number > 0, got 0\.0"):
        density(kind="ggn").effective_dimension(0)
    with pytest.raises(ValueError, match="damping must be above -0, the smallest eigenvalue"):
        density(kind="ggn").log_determinant(0)


def test_batches_whose_graphs_differ_have_no_gram_matrix():
    """A batch of one example has no axis of examples, so that its layer is another part; across, nothing may be left out."""
    pairs = [(X[:29], Y[:29]), (X[29:], Y[29:])]
    found = spectral_density(network(), F.cross_entropy, pairs, kind="ggn", n_samples=2, steps=75)
    assert found.method == "lanczos"
    assert "not gram: batches have different graphs" in found.why

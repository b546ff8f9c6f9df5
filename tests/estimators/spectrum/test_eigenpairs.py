"""Krylov spaces and what is read off them, against dense eigenvalues of matrices whose spectrum is chosen."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from metacurv.estimators.spectrum.eigenpairs import Eigenpairs, eigenpairs, gap_errors
from metacurv.estimators.spectrum.krylov import Krylov
from metacurv.estimators.spectrum.quadrature import quadratures

DTYPES = [torch.float64, torch.float32]
SPECTRA = {
    "far apart": [9.0, -8.0, 7.0, 3.0, *(0.01 * i for i in range(40))],
    "close together": [2.0 - 0.001 * i for i in range(6)] + [0.0] * 20,
    "of low rank": [5.0, 1.0, -1.0] + [0.0] * 50,
    "only negative": [-float(i) for i in range(30)],
    "one value": [3.0] * 8,
    "zero": [0.0] * 5,
}


def matrix(values: list[float], seed: int = 0) -> Tensor:
    """A symmetric matrix with these eigenvalues, float64."""
    generator = torch.Generator().manual_seed(seed)
    n = len(values)
    basis, _ = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))
    made = basis * torch.tensor(values, dtype=torch.float64) @ basis.t()
    return (made + made.t()) / 2


def source(n: int, dtype: torch.dtype) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(7)
    return lambda: torch.randn(n, generator=generator, dtype=torch.float64).to(dtype)


def search(a: Tensor, k: int, **options) -> Eigenpairs:
    defaults = {
        "end": "magnitude",
        "rtol": 1e-4,
        "most_held": 2 * k + 6,
        "most_products": 2000,
        "eps": torch.finfo(a.dtype).eps,
    }
    fresh = source(len(a), a.dtype)
    return eigenpairs(lambda v: a @ v, fresh, k, each=lambda: None, **{**defaults, **options})


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("end", ["magnitude", "algebraic"])
@pytest.mark.parametrize("name", SPECTRA)
def test_bounds_hold(name, end, dtype):
    values = torch.tensor(SPECTRA[name], dtype=torch.float64)
    order = (values.abs() if end == "magnitude" else values).argsort(descending=True)
    k = 3
    a = matrix(SPECTRA[name])
    found = search(a.to(dtype), k, end=end)
    assert found.converged
    # Several equal values, or those within each other's errors, are there in any order.
    nearest = (found.values[:, None] - values).abs().amin(1)
    assert (nearest <= found.residuals).all()
    vectors = found.vectors.double()
    off = (vectors @ a - found.values[:, None] * vectors).norm(dim=1)
    assert (off <= 2 * found.residuals + 1e-6 * (dtype == torch.float32)).all()
    expected = values[order][:k].sort().values  # of a tie either may come first
    assert (found.values.sort().values - expected).abs().max() <= found.errors.max() + 1e-12


def test_a_small_space_is_restarted():
    """Fourteen vectors of a hundred are held; the values come out the same, for more products."""
    values = [0.1 * i for i in range(100)]
    a = matrix(values)
    small, large = search(a, 4, rtol=1e-8, most_held=14), search(a, 4, rtol=1e-8, most_held=100)
    assert small.n_products > large.n_products > 10
    torch.testing.assert_close(small.values, large.values, rtol=1e-7, atol=0)


def test_it_stops_at_the_largest_number_of_products():
    found = search(matrix(SPECTRA["far apart"]), 2, rtol=1e-12, most_products=3)
    assert (found.n_products, found.converged) == (3, False)


def test_products_that_are_not_finite_are_named():
    with pytest.raises(ValueError, match="products with the matrix must be finite, got a norm of"):
        eigenpairs(
            lambda v: v * torch.nan,
            source(4, torch.float64),
            1,
            end="magnitude",
            rtol=0.1,
            most_held=4,
            most_products=9,
            eps=1e-16,
            each=lambda: None,
        )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_basis_stays_orthonormal(dtype):
    """Also after the space has seen all there is, and goes on with fresh vectors, and after a restart."""
    a = matrix(SPECTRA["of low rank"]).to(dtype)
    fresh = source(len(a), dtype)
    space = Krylov(lambda v: a @ v, fresh(), 40, torch.finfo(dtype).eps)
    for step in range(30):
        if not space.waiting or step == 2:
            space.add(fresh)
        space.extend()
        if step == 12:
            _, vectors = torch.linalg.eigh(space.projected)
            space.restart(vectors[:, :9], torch.linalg.eigvalsh(space.projected)[:9])
    count = len(space.basis)
    assert count == 26
    gram = space.basis @ space.basis.t()
    torch.testing.assert_close(gram, torch.eye(count, dtype=dtype))
    projected = (space.basis @ a @ space.basis.t()).double()
    atol = 1e-12 if dtype == torch.float64 else 1e-5
    torch.testing.assert_close(space.projected, projected, rtol=0, atol=atol)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_signs_in_the_span_are_drawn_again(n):
    """Of a multiple of the identity every vector is an eigenvector, and a sign vector is often in the span of others."""
    generator = torch.Generator().manual_seed(0)

    def signs() -> Tensor:
        return torch.randint(0, 2, (n,), generator=generator).double() * 2 - 1

    found = eigenpairs(
        lambda v: 2 * v,
        signs,
        n,
        end="magnitude",
        rtol=1e-3,
        most_held=n + 1,
        most_products=100,
        eps=2e-16,
        each=lambda: None,
    )
    torch.testing.assert_close(found.values, torch.full((n,), 2.0, dtype=torch.float64))
    gram = found.vectors @ found.vectors.t()
    torch.testing.assert_close(gram, torch.eye(n, dtype=torch.float64))


def test_coarse_products_do_not_hide_the_last_directions():
    """A random vector has a 20th of its length in one direction of 400, which rounding of the products alone may exceed.

    The vectors are finer than that: each random one serves, and none is drawn in vain.
    """
    generator, drawn = torch.Generator().manual_seed(0), 0

    def fresh() -> Tensor:
        nonlocal drawn
        drawn += 1
        return torch.randn(400, generator=generator)

    space = Krylov(lambda v: 2 * v, fresh(), 400, torch.finfo(torch.bfloat16).eps)
    while not space.is_whole:
        if not space.waiting:
            space.add(fresh)
        space.extend()
    assert drawn == space.size == 400


def test_outliers_over_a_bulk():
    """The fourth value is far below the first ones and ten times above the bulk, which the space must not take for it."""
    bulk = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 1e-3
    a = matrix([1e4, 1e2, 1.0, 1e-2, *bulk.tolist()])
    found = search(a, 4, rtol=1e-3)
    expected = torch.tensor([1e4, 1e2, 1.0, 1e-2], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=1e-3, atol=0)


@pytest.mark.parametrize("times", [2, 3])
def test_equal_values_are_all_found(times):
    values = [v for v in (3.0, 2.5, 2.0) for _ in range(times)] + [0.01 * i for i in range(60)]
    found = search(matrix(values), 2 * times, rtol=1e-4)
    expected = torch.tensor(sorted(values, reverse=True)[: 2 * times], dtype=torch.float64)
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=0)


def test_what_the_first_vector_lacks_is_looked_for():
    """It has nothing of the largest value's eigenvector, and neither have its products."""
    values = torch.tensor([5.0, 3.0, 1.0, *(0.5 - 0.003 * i for i in range(150))]).double()
    drawn = []

    def fresh() -> Tensor:
        v = torch.randn(len(values), generator=generator, dtype=torch.float64)
        v[0] *= bool(drawn)
        drawn.append(v)
        return v

    generator = torch.Generator().manual_seed(0)
    found = eigenpairs(
        lambda v: values * v,
        fresh,
        2,
        end="magnitude",
        rtol=1e-3,
        most_held=100,
        most_products=100,
        eps=1e-16,
        each=lambda: None,
    )
    torch.testing.assert_close(found.values.tolist(), [5.0, 3.0], rtol=1e-3, atol=0)


def test_errors_by_the_gap_by_hand():
    """Residuals 0.2 and 0.1 of the values 3 and 1: the gaps are 1.9 and 1.8. A gap within the residual tells nothing."""
    theta = torch.tensor([3.0, 1.0], dtype=torch.float64)
    found = gap_errors(theta, torch.tensor([0.2, 0.1], dtype=torch.float64), 2)
    torch.testing.assert_close(found.tolist(), [0.04 / 1.9, 0.01 / 1.8])
    near = gap_errors(theta, torch.tensor([1.5, 0.9], dtype=torch.float64), 2)
    torch.testing.assert_close(near.tolist(), [1.5, 0.9])


def test_a_restart_keeps_residuals():
    a = matrix([0.1 * i for i in range(60)])
    space = Krylov(lambda v: a @ v, source(60, torch.float64)(), 20, 1e-16)
    for _ in range(12):
        space.extend()
    theta, vectors = torch.linalg.eigh(space.projected)
    before = space.residuals(vectors[:, -4:])
    space.restart(vectors[:, -4:], theta[-4:])
    after = space.residuals(torch.eye(4, dtype=torch.float64))
    assert before.min() > 1e-6
    torch.testing.assert_close(after, before)
    space.extend()
    torch.testing.assert_close(space.projected, space.basis @ a @ space.basis.t())


def test_errors_are_seldom_too_small():
    """Over random spectra with outliers; the rest are values that the space has not seen, whose place another one takes."""
    wrong = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        bulk = torch.randn(150, generator=generator) * 0.1
        outliers = torch.rand(8, generator=generator) * 3
        values = torch.cat([bulk, outliers]).double()
        found = search(matrix(values.tolist(), seed), 5, rtol=1e-2)
        expected = values[values.abs().argsort(descending=True)][:5]
        wrong += bool(((found.values - expected).abs() > found.errors).any())
    assert wrong <= 1


def test_rounding_is_said():
    """In float32 a value of a 5,000th of the largest has no three digits that are right."""
    a = matrix([1.0, 2e-4, *([0.0] * 20)]).float()
    found = search(a, 2, rtol=1e-3)
    assert found.is_rounded
    assert not found.converged


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-10, 10), min_size=2, max_size=12), st.integers(0, 5))
def test_quadratures_are_exact_for_polynomials(values, seed):
    """Of degree 2 m - 1, for m products (Golub and Meurant 2010, theorem 6.2)."""
    a, n = matrix(values, seed), len(values)
    probe = torch.ones(n, dtype=torch.float64)
    for steps in (1, 2, 4):
        whole = quadratures(lambda v: a @ v, probe, steps, 2e-16, lambda: None).whole
        powers = itertools.accumulate([probe] * (2 * steps), lambda v, _: a @ v)
        scale = max(1.0, a.norm().item())
        for degree, vector in enumerate(powers):
            expected = (probe @ vector).item()
            got = n * (whole.weights @ whole.nodes**degree).item()
            assert abs(got - expected) <= 1e-8 * n * scale**degree

"""The functions that chains and estimators share, against dense formulas in float64 and by hand."""

from __future__ import annotations

import pytest
import torch

from metacurv import ops
from metacurv.ops._reference.factors import (
    fill_with_probes,
    layer_products,
    random_products,
    reflected_columns,
)
from tests.helpers import BACKENDS

FLOATS = [torch.float32, torch.float64]
SHAPES = [(1, 1), (3, 1), (1, 2), (100, 10), (7, 31), (5, 33), (2, 1025), (0, 5), (4, 0)]


def probabilities(samples: int, classes: int, dtype: torch.dtype):
    """Square roots of probabilities that differ widely, and of weights."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(samples, classes, generator=generator, dtype=torch.float64)
    root = torch.rand(samples, generator=generator, dtype=torch.float64)
    return logits.softmax(1).sqrt().to(dtype), root.to(dtype)


def dense_factors(sqrt_p, root):
    """S of each sample, [M, C, C] in float64."""
    q = sqrt_p.double()
    return root.double().view(-1, 1, 1) * (q.diag_embed() - q.square()[:, :, None] * q[:, None])


def signs_like(sqrt_p, n: int):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 2, (n, *sqrt_p.shape), generator=generator).mul(2).sub(1).to(sqrt_p)


@pytest.mark.parametrize("backend", BACKENDS)
def test_probes_follow_each_other_modulo_2_to_32(backend):
    signs = torch.full((3, 4, 50), 7.0)
    run = ops.implementation(backend, signs.device)
    assert fill_with_probes(run, signs, 11, 2**32 - 2, 5) is signs
    for row, probe in zip(signs, (2**32 - 2, 2**32 - 1, 0), strict=True):
        expected = torch.empty(4, 50)
        ops.rademacher_([expected], seed=11, probe=probe, numbers=[5])
        assert torch.equal(row, expected)


def test_random_products_worked_by_hand():
    """p = (1/4, 9/16, 3/16 in place of the rest): t = (+-1/2, +-3/4), root 2."""
    signs = torch.tensor([[[1.0, 1.0]], [[1.0, -1.0]], [[-1.0, 1.0]]])
    u = random_products(torch.tensor([[0.5, 0.75]]), torch.tensor([2.0]), signs)
    # t^2 = (1/4, 9/16); sums 5/4, -1/4, 1/4
    assert u.tolist() == [
        [[2 * (0.5 - 0.25 * 1.25), 2 * (0.75 - 0.5625 * 1.25)]],
        [[2 * (0.5 + 0.25 * 0.25), 2 * (-0.75 + 0.5625 * 0.25)]],
        [[2 * (-0.5 - 0.25 * 0.25), 2 * (0.75 - 0.5625 * 0.25)]],
    ]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_random_products_are_those_of_the_dense_factor(dtype, shape):
    sqrt_p, root = probabilities(*shape, dtype)
    before = sqrt_p.clone()
    signs = signs_like(sqrt_p, 3)
    expected = torch.einsum("mcd,rmd->rmc", dense_factors(sqrt_p, root), signs.double())
    u = random_products(sqrt_p, root, signs)
    assert u.dtype == dtype
    assert torch.equal(sqrt_p, before)
    torch.testing.assert_close(u.double(), expected, rtol=0, atol=16 * torch.finfo(dtype).eps)


def test_random_products_square_to_the_hessian():
    """The mean of (S e)(S e)' over many e is s (diag(p) - p p')."""
    sqrt_p, root = probabilities(1, 4, torch.float64)
    u = random_products(sqrt_p, root, signs_like(sqrt_p, 4000))[:, 0]
    p, s = sqrt_p[0] ** 2, float(root[0] ** 2)
    assert s > 0.01
    torch.testing.assert_close(u.T @ u / len(u), s * (p.diag() - p.outer(p)), rtol=0, atol=0.05 * s)


@pytest.mark.parametrize("classes", [1, 2, 10])
def test_reflected_columns_square_to_the_hessian(classes):
    """As those of the dense factor do, of which there is one more."""
    sqrt_p, root = probabilities(6, classes, torch.float64)
    u = reflected_columns(sqrt_p, root, 0, classes - 1)
    assert u.shape == (classes - 1, 6, classes)
    dense = dense_factors(sqrt_p, root)
    hessian = torch.einsum("mcr,mdr->mcd", dense, dense)
    torch.testing.assert_close(torch.einsum("rmc,rmd->mcd", u, u), hessian, rtol=0, atol=1e-14)
    some = reflected_columns(sqrt_p, root, classes // 2, classes - 1)
    assert torch.equal(some, u[classes // 2 :])


def test_layer_products_worked_by_hand():
    a = torch.tensor([[1.0, 2.0], [3.0, 0.0]])  # squared norms 5 and 9
    u = torch.tensor([[[1.0, 2.0, 3.0], [0.0, 1.0, -1.0]], [[1.0, 0.0, 0.0]] * 2])
    w = torch.tensor([[[2.0, 0.5, -1.0], [7.0, 4.0, 1.0]], [[2.0, 5.0, 5.0]] * 2])
    sums = layer_products(a, u, w)
    assert sums.dtype == torch.float64
    # dots: 2 + 1 - 3 = 0 and 4 - 1 = 3; 2 and 2
    assert sums.tolist() == [[27.0, 3.0], [28.0, 4.0]]
    # squares: 14 and 2; 1 and 1
    assert layer_products(a, u, u).tolist() == [[88.0, 16.0], [14.0, 2.0]]


@pytest.mark.parametrize(
    "sizes",
    [
        *[(1, 1, 1, 1), (100, 40, 100, 9), (100, 100, 10, 64), (1, 3, 1000, 1), (2000, 1, 1, 3)],
        *[(0, 3, 4, 2), (3, 0, 4, 2), (3, 4, 0, 2), (3, 4, 5, 0)],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_layer_products_are_those_of_outer_products(dtype, sizes):
    rows, inputs, outputs, draws = sizes
    generator = torch.Generator().manual_seed(0)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    a, u, w = numbers(rows, inputs), numbers(draws, rows, outputs), numbers(draws, rows, outputs)
    for other in (w, u):
        sums = layer_products(a, u, other)
        assert sums.shape == (draws, 2)
        for r in range(draws):
            of_u, of_w = (torch.einsum("no,ni->noi", x[r].double(), a.double()) for x in (u, other))
            dense = [(of_u * of_w).sum(), (u[r].double() * other[r].double()).sum()]
            sizes_of = [(of_u * of_w).abs().sum(), (u[r].double() * other[r].double()).abs().sum()]
            for found, expected, size in zip(sums[r], dense, sizes_of, strict=True):
                assert (found - expected).abs() <= 8 * torch.finfo(dtype).eps * size


def test_many_rows_are_added_in_float64():
    """In float32 the sum of so many ones would stand still at 2^24."""
    n = 2**24 + 3
    u = torch.ones(1, 1, 1).expand(1, n, 1)
    assert layer_products(u[0], u, u).tolist() == [[n, n]]

"""Operator, eigenvalues, density and diagonal against dense Hessians and GGNs: every network and loss of the tables."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import metacurv
from tests.estimators.dense.case import FORWARD_SEED, Case, build
from tests.estimators.dense.checks import EXACT, SIGMAS_OF_PARTS, TINY
from tests.estimators.dense.methods import Service, service
from tests.estimators.dense.table import TABLE, marks_of, truth_of
from tests.estimators.dense.truth import KINDS

FLAGS = {name: build(make) for name, make in TABLE.items()}
K = 3
_EVERY = 9  # case is in the quick suite: what they need of a graph is what estimate_trace needs


def cases(method: str, kinds=KINDS) -> pytest.MarkDecorator:
    """Every kind and case for which ``method`` of estimate_trace has what it needs, or may have."""
    return pytest.mark.parametrize(
        ("kind", "name"),
        [
            pytest.param(kind, name, id=f"{kind}-{name}", marks=marks_of(name, _EVERY))
            for kind in kinds
            for name, case in FLAGS.items()
            if service(case, method, kind) is not Service.NEVER
        ],
    )


def given(case: Case) -> tuple:
    """The arguments of every function, under the dropout masks of the truth."""
    torch.manual_seed(FORWARD_SEED)
    return case.model, case.loss_fn, case.inputs, case.targets


def diagonal(case: Case, kind: str, method: str, **options: int) -> metacurv.Diagonal | None:
    """The diagonal, or None where an honest refusal is as good."""
    arguments = given(case)
    try:
        found = metacurv.diagonal(*arguments, kind=kind, method=method, **options)
    except ValueError as refusal:
        if service(case, method, kind) is Service.MUST or "method" not in str(refusal):
            raise
        return None
    assert service(case, method, kind) is not Service.NEVER
    return found


def rounding(name: str) -> float:
    return EXACT * truth_of(name).scale + TINY


def eigenvalues(kind: str, name: str) -> Tensor:
    """By size, the largest first."""
    found = torch.linalg.eigvalsh(truth_of(name).matrices[kind])
    return found[found.abs().argsort(descending=True)]


@cases("hutchinson")
def test_operator(kind, name):
    case, matrix = build(TABLE[name]), truth_of(name).matrices[kind]
    operator = metacurv.curvature_operator(*given(case), kind=kind)
    assert operator.names == truth_of(name).names
    block = operator @ torch.eye(len(matrix), dtype=torch.float64)
    assert (block - matrix).abs().max() <= rounding(name)
    parts = operator.to_dict(matrix[0].clone())
    product = torch.cat([x.flatten() for x in (operator @ parts).values()])
    assert (product - matrix @ matrix[0]).norm() <= rounding(name) * (1 + matrix[0].norm())


@cases("exact")
def test_exact_diagonal(kind, name):
    case, truth = build(TABLE[name]), truth_of(name)
    found = diagonal(case, kind, "exact")
    if found is None:
        return
    flat = torch.cat([x.flatten() for x in found.values()])
    assert (flat - truth.matrices[kind].diagonal()).abs().max() <= rounding(name)
    assert not any(x.any() for x in found.stderr.values())


@cases("hutchinson")
def test_sampled_diagonal(kind, name):
    """By the methods in turn."""
    case, truth = build(TABLE[name]), truth_of(name)
    method = ("activation", "hutchinson")[list(TABLE).index(name) % 2]
    found = diagonal(case, kind, method, n_samples=40, seed=3)
    if found is None:
        return
    flat = torch.cat([x.flatten() for x in found.values()])
    errors = torch.cat([x.flatten() for x in found.stderr.values()])
    off = flat - truth.matrices[kind].diagonal()
    # Entries by themselves may be rare events of a skewed law; their sum, whose samples are the trace's, and most of them not.
    assert off.norm() <= SIGMAS_OF_PARTS * errors.norm() + rounding(name)
    far = off.abs() > SIGMAS_OF_PARTS * errors + rounding(name)
    assert far.double().mean() <= 0.05


@cases("hutchinson")
def test_lanczos(kind, name):
    case, expected = build(TABLE[name]), eigenvalues(kind, name)
    k = min(K, len(expected))
    found = metacurv.top_eigenvalues(
        *given(case), kind=kind, k=k, vectors=True, method="lanczos", rtol=1e-7, seed=1
    )
    nearest = (found.values[:, None] - torch.linalg.eigvalsh(truth_of(name).matrices[kind])).abs()
    assert (nearest.amin(1) <= found.residuals + rounding(name)).all()
    assert (found.values[0] - expected[0]).abs() <= found.errors[0] + rounding(name)
    product = truth_of(name).matrices[kind] @ found.vectors
    off = (product - found.vectors * found.values).norm(dim=0)
    assert (off <= found.residuals + rounding(name)).all()


@cases("exact", ("ggn",))
def test_gram(kind, name):
    case, expected = build(TABLE[name]), eigenvalues(kind, name)
    k = min(K, len(expected))
    arguments = given(case)
    found = metacurv.top_eigenvalues(*arguments, kind=kind, k=k, by_layer=True)
    if found.method != "gram":
        assert "not gram: " in found.why
        return
    assert found.n_products == 0
    assert (found.values - expected[:k]).abs().max() <= rounding(name)
    layers = truth_of(name).per_layer(kind)
    assert list(found.per_layer) == list(layers)
    torch.manual_seed(FORWARD_SEED)
    density = metacurv.spectral_density(*arguments, kind=kind, method="gram", by_layer=True)
    values = density.eigenvalues
    assert (values - expected[: len(values)]).abs().max() <= rounding(name)
    assert (expected[len(values) :].abs() <= rounding(name)).all()
    for layer, trace in layers.items():
        assert abs(density.per_layer[layer].trace - trace) <= rounding(name)

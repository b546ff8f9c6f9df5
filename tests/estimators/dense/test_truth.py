"""That the truth is true: by hand, by torch.func, by differences, and by what theory says of each case's flags."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from torch import Tensor, nn

from tests.estimators.dense.architectures import MAX_PARAMETERS, architectures
from tests.estimators.dense.case import Case, build, general
from tests.estimators.dense.second_ways import difference_diagonals, func_matrices
from tests.estimators.dense.table import TABLE, marks_of, truth_of
from tests.estimators.dense.truth import KINDS, Truth, dense_hessian, dense_truth
from tests.helpers import property_test, sampled
from tests.problems.problem import rand

# In torch 2.13: no batching rule (GLU), no way with running statistics, or wrong second derivatives (the others).
NOT_BY_TORCH_FUNC = {
    "batch_norm_in_train_mode",
    "batch_norm_of_the_batch_in_eval_mode",
    "gated_linear_units",
    "instance_norm",
    "layer_norm",
    "layer_norm_on_images",
    "norm_of_the_output",
    "one_batch_norm_left_in_train_mode",
    "transformer_encoder_layer",
}
# Reverse mode says that a padding row has no derivative, forward mode that it has one: a test of its own below.
PADDED = "embedding_padding_idx"


def known(name: str) -> tuple[Case, Truth]:
    return build(TABLE[name]), truth_of(name)


@pytest.mark.parametrize("name", sampled(sorted(TABLE.keys() - NOT_BY_TORCH_FUNC - {PADDED}), 8))
def test_torch_func_agrees(name):
    case, truth = known(name)
    for kind, matrix in func_matrices(case).items():
        tolerance = 1e-11 * max(1.0, truth.scale)
        torch.testing.assert_close(matrix, truth.matrices[kind], rtol=1e-9, atol=tolerance)


@pytest.mark.parametrize("name", sorted(NOT_BY_TORCH_FUNC | {"relu", "tanh", "dropout_tanh"}))
def test_differences_agree(name):
    case, truth = known(name)
    for kind, diagonal in difference_diagonals(case, every=3).items():
        expected = truth.matrices[kind].diagonal()[::3]
        torch.testing.assert_close(diagonal, expected, rtol=0, atol=1e-7 * truth.scale)


def test_a_padding_row_has_no_derivative():
    """And all else is as without the padding."""
    case, truth = known(PADDED)
    plain = build(TABLE[PADDED])
    plain.model[0].padding_idx = None
    row = case.model[0].padding_idx * case.model[0].embedding_dim + torch.arange(2)
    for kind, expected in dense_truth(plain).matrices.items():
        assert expected[row].norm() > 0.01
        expected[row], expected[:, row] = 0, 0
        torch.testing.assert_close(truth.matrices[kind], expected)


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in TABLE])
def test_flags(name):
    """Where each output is piecewise linear in each parameter the diagonals agree, and elsewhere tests can tell them apart."""
    case, truth = known(name)
    assert sum(truth.sizes) <= MAX_PARAMETERS
    hessian, ggn = (truth.matrices[kind].diagonal() for kind in KINDS)
    if case.piecewise_linear or truth.scale == 0:
        torch.testing.assert_close(hessian, ggn, rtol=0, atol=1e-12 * truth.scale)
    else:
        assert (hessian - ggn).abs().max() > 1e-3 * truth.scale
        assert abs(truth.trace("hessian") - truth.trace("ggn")) > 1e-3 * truth.scale
    assert case.activation_hessian or not case.piecewise_linear


@pytest.mark.parametrize("name", [pytest.param(name, marks=marks_of(name)) for name in TABLE])
def test_parts(name):
    case, truth = known(name)
    assert truth.names == list(case.live)
    for kind in KINDS:
        for parts in (truth.per_parameter(kind), truth.per_layer(kind)):
            error = 1e-12 * truth.scale
            assert sum(parts.values()) == pytest.approx(truth.trace(kind), abs=error)


def test_layers_are_modules():
    truth = known("frozen_biases")[1]
    assert list(truth.per_layer("hessian")) == ["0", "2", "4"]
    assert list(known("a_bare_linear_layer")[1].per_layer("ggn")) == [""]
    tied = known("embedding_tied_to_the_output")[1]
    assert list(tied.per_layer("ggn")) == ["embed", "mix", "out"]  # "out" keeps its bias only
    assert list(known("nested_modules")[1].per_layer("ggn")) == ["0.0", "1.0.0"]


@given(case=architectures())
@property_test
def test_random_architectures(case):
    truth = dense_truth(case)
    hessian, ggn = (truth.matrices[kind].diagonal() for kind in KINDS)
    if case.piecewise_linear:
        torch.testing.assert_close(hessian, ggn, rtol=0, atol=1e-12 * truth.scale)
    assert sum(truth.sizes) <= MAX_PARAMETERS


def linear_regression() -> Case:
    return general(nn.Linear(4, 3), rand(6, 4), F.mse_loss, rand(6, 3))


def test_linear_regression_by_hand():
    """Mean over N x 3 outputs: tr = 2 / 3N sum_n 3 (||x_n||^2 + 1)."""
    case = build(linear_regression)
    truth = dense_truth(case)
    weight, bias = 2 * case.inputs.square().sum().item() / 6, 2.0
    for kind in KINDS:
        assert truth.per_parameter(kind) == pytest.approx({"weight": weight, "bias": bias})
        assert truth.trace(kind) == pytest.approx(weight + bias)


def test_logistic_regression_by_hand():
    """H_out = diag(p) - p p' a sample, and the weight's block is its product with x x'."""
    case = build(lambda: general(nn.Linear(4, 3), rand(6, 4)))
    p = case.output().detach().softmax(1)
    one = torch.cat([case.inputs, torch.ones(6, 1, dtype=torch.float64)], 1)
    expected = ((one.square().sum(1)) * (1 - p.square().sum(1))).mean().item()
    for kind in KINDS:
        assert dense_truth(case).trace(kind) == pytest.approx(expected)


class Square(nn.Module):
    """w * (w * x): one weight twice in sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.w * (self.w * x)


def test_a_tied_weight_by_hand():
    """l = (w^2 x - y)^2: l'' = 12 w^2 x^2 - 4 x y, of which the GGN has 2 (2 w x)^2 = 8 w^2 x^2."""
    case = build(lambda: general(Square(), rand(1), F.mse_loss, rand(1)))
    w, x, y = case.model.w.item(), case.inputs.item(), case.targets.item()
    truth = dense_truth(case)
    assert truth.trace("hessian") == pytest.approx(12 * w**2 * x**2 - 4 * x * y)
    assert truth.trace("ggn") == pytest.approx(8 * w**2 * x**2)


def test_two_layers_by_hand():
    """l = (v w x)^2 / 2 in v and w: the off-diagonal entry has twice the factor of the diagonal's."""
    case = build(
        lambda: general(
            nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)),
            rand(1, 1),
            lambda out, y: out.square().sum() / 2,
        )
    )
    w, v = (p.item() for p in case.model.parameters())
    x2 = case.inputs.item() ** 2
    expected = x2 * torch.tensor([[v * v, 2 * v * w], [2 * v * w, w * w]], dtype=torch.float64)
    torch.testing.assert_close(dense_hessian(case), expected)


@pytest.mark.parametrize("name", ["cross_entropy_tanh", "mse_tanh", "attention", "layer_norm"])
def test_ggns_of_convex_losses_are_positive(name):
    matrix = known(name)[1].matrices["ggn"]
    assert torch.linalg.eigvalsh(matrix).min() > -1e-12 * matrix.trace()


def test_masks_are_the_same_in_every_pass():
    case = known("dropout_relu")[0]
    before = torch.get_rng_state()
    assert torch.equal(case.output(), case.output())
    assert torch.equal(torch.get_rng_state(), before)

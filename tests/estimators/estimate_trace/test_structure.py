"""Structures that a look at one graph, or at one set of values, may get wrong; against dense truth, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metacurv import MetaCurvatureLR
from tests.estimators.dense.case import build, general
from tests.estimators.dense.checks import assert_exact, assert_within_errors, measure
from tests.estimators.dense.truth import KINDS, dense_truth
from tests.problems.problem import rand

kinds = pytest.mark.parametrize("kind", KINDS)


class HalfStashed(nn.Module):
    """Gives one result of a node that has several, and keeps the other for the loss."""

    def __init__(self, split) -> None:
        super().__init__()
        self.first, self.last, self.split = nn.Linear(3, 4), nn.Linear(4, 4), split

    def forward(self, x: Tensor) -> Tensor:
        given, self.kept = self.split(self.last(self.first(x).relu()))
        return given


SPLITS = {
    "chunk": lambda z: z.chunk(2, 1),
    "unbind": lambda z: z.view(-1, 2, 2).unbind(1),
}
# Those of no known form, and softmax over both halves.
LOSSES = {
    "added": lambda model: lambda z, y: (z - y).square().mean() + model.kept.exp().mean(),
    "joined": lambda model: (
        lambda z, y: F.cross_entropy(torch.cat([z, model.kept], 1), y[:, 0].abs().long())
    ),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("split", SPLITS)
def test_a_loss_that_takes_the_other_half_from_elsewhere(split, loss):
    case = build(lambda: general(HalfStashed(SPLITS[split]), rand(6, 3), None, rand(6, 2)))
    loss_fn = LOSSES[loss](case.model)
    case = general(case.model, case.inputs, loss_fn, case.targets)
    truth = dense_truth(case)
    estimate = measure(case, kind="hessian", n_samples=200)
    (assert_exact if estimate.method == "exact" else assert_within_errors)(estimate, truth)
    opt = MetaCurvatureLR(
        torch.optim.SGD(case.model.parameters(), lr=0.1), model=case.model, estimator="auto"
    )
    opt.update_curvature(case.loss())
    if opt.last_estimate.method == "exact":
        assert_exact(opt.last_estimate, truth)
    with pytest.raises(ValueError, match="otherwise than through"):
        measure(case, kind="ggn", method="exact")


class MergedRows(nn.Module):
    """Puts four samples into a row, where they meet in a layer that at first lets nothing through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.mix, self.last = nn.Linear(3, 4), nn.Linear(16, 16), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = self.first(x).view(-1, 16)
        return self.last((rows + self.mix(rows)).view(-1, 4))


@kinds
def test_samples_that_meet_once_weights_have_changed(kind):
    case = build(lambda: general(MergedRows(), rand(24, 3)))
    mix = case.model.mix.weight
    for value in (0.0, 0.3):
        with torch.no_grad():
            mix.fill_(value)
        assert_exact(measure(case, kind=kind, method="exact"), dense_truth(case))


class Gathered(nn.Module):
    """Takes rows of an activation by number, as an embedding does with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.embedding(self.rows, self.first(x)))


def test_an_embedding_of_activations():
    case = build(lambda: general(Gathered(), rand(6, 3)))
    for rows in (torch.arange(6), torch.zeros(6, dtype=torch.long)):
        case.model.rows = rows
        assert_exact(measure(case, kind="ggn", method="exact"), dense_truth(case))

"""Samples that interact, in ways that single random tests and equal-looking graphs can hide, against dense truth.

``exact`` and ``activation`` treat samples apart where they do not interact, and remember what they found for graphs of the same
structure. Every model here is right only where nothing was found by luck or kept from a model that merely looks the same.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metacurv import TraceEstimate
from metacurv.estimators.activation.batch_layout import Layout, follows_scaling, scalings
from tests.estimators.dense.case import Case, build, general, labels
from tests.estimators.dense.checks import assert_exact, assert_within_errors, measure
from tests.estimators.dense.truth import KINDS, dense_truth
from tests.helpers import sampled
from tests.problems.problem import rand

Mix = Callable[[Tensor], Tensor]


class Mixed(nn.Module):
    """Two layers with ``mix`` between: [N, 4] -> [N, 4] or [N, T, 4] -> [N, 4]."""

    def __init__(self, mix: Mix) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)
        self.mix = mix

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.mix(self.first(x)).relu())


def mixed(mix: Mix, *shape: int, seed: int = 1) -> Case:
    return build(lambda: general(Mixed(mix), rand(*shape, 3), targets=labels(shape[0])), seed=seed)


def served(case: Case, kind: str, method: str, n_samples: int) -> TraceEstimate | None:
    """None where a method by name refuses the model, and says so."""
    try:
        return measure(case, method=method, kind=kind, n_samples=n_samples)
    except ValueError as refusal:
        if method == "auto" or "method" not in str(refusal):
            raise
    return None


def assert_right(case: Case, kind: str, *, n_samples: int = 64) -> None:
    """exact, activation and auto: the truth, or a refusal."""
    truth = dense_truth(case)
    for method in ("exact", "activation", "auto"):
        estimate = served(case, kind, method, n_samples)
        if estimate is not None:
            check = assert_exact if estimate.method == "exact" else assert_within_errors
            check(estimate, truth)


# Each sample with which others: all, the first, the last, the ones before, one other.
MIXES: dict[str, Mix] = {
    "minus the mean": lambda h: h - h.mean(0),
    "minus the first": lambda h: h - h[:1],
    "plus the last": lambda h: h + h[-1:],
    "plus the largest": lambda h: h + h.max(0).values,
    "sum of those before": lambda h: h.cumsum(0),
    "sum of those after": lambda h: h.flip(0).cumsum(0).flip(0),
    "the next one": lambda h: h + 2 * h.roll(1, 0),
    "softmax over the batch": lambda h: h.softmax(0),
    "attention over the batch": lambda h: (h @ h.t()).softmax(1) @ h,
    "normalised over the batch": lambda h: h / h.norm(dim=0),
}


@pytest.mark.parametrize("rows", [2, 5])
@pytest.mark.parametrize("name", sampled(MIXES, 3))
@pytest.mark.parametrize("kind", KINDS)
def test_interactions_in_the_model(kind, name, rows):
    assert_right(mixed(MIXES[name], rows), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_may_be_any_sample(seed, kind):
    """Which samples take part depends on the numbers."""
    assert_right(mixed(MIXES["plus the largest"], 4, seed=seed), kind)


# Losses of (output, target) that compare samples.
COUPLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "to the first": lambda out, y: F.mse_loss(out - out[:1], y),
    "to the mean": lambda out, y: F.mse_loss(out - out.mean(0), y),
    "pairs": lambda out, y: F.mse_loss(out[::2] - out[1::2], y[::2]),
    "halves": lambda out, y: F.mse_loss(out[:2] * out[2:], y[2:]),
    "contrastive": lambda out, y: F.cross_entropy(
        F.normalize(out, dim=1) @ F.normalize(out, dim=1).t(), torch.arange(4).flip(0)
    ),
    "triplets": lambda out, y: F.triplet_margin_loss(out[:2], out[1:3], out[2:], margin=5.0),
    "one softmax over all": lambda out, y: F.cross_entropy(out.view(1, -1), torch.tensor([5])),
    "softmax over samples": lambda out, y: F.cross_entropy(out.t(), torch.tensor([2, 0, 3])),
    "log softmax over samples": lambda out, y: -out[:3].log_softmax(0).diagonal().mean(),
    "nll over samples": lambda out, y: F.nll_loss(out.log_softmax(0), torch.tensor([2, 0, 1, 2])),
    "variance": lambda out, y: (out.var(0) - 1).square().sum(),
    "product of all": lambda out, y: (1 + 0.1 * out).prod(),
}


@pytest.mark.parametrize("name", sampled(COUPLED, 3))
@pytest.mark.parametrize("kind", KINDS)
def test_interactions_in_the_loss(kind, name):
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)]
    case = build(lambda: general(nn.Sequential(*layers), rand(4, 3), COUPLED[name], rand(4, 3)))
    assert_right(case, kind, n_samples=1000)  # a factor of no known form is noisy


class ScaledDotProductPacked(torch.autograd.Function):
    """A product of rows with a constant matrix, by a name like that of torch's own attention."""

    @staticmethod
    def forward(ctx, h: Tensor, mix: Tensor) -> Tensor:
        ctx.save_for_backward(mix)
        return mix @ h

    @staticmethod
    def backward(ctx, g: Tensor) -> tuple[Tensor, None]:
        (mix,) = ctx.saved_tensors
        return mix.t() @ g, None


# Two models whose graphs have the same nodes and shapes: samples are apart in the first, not in the second.
PERMUTED = torch.tensor([2, 3, 0, 1])
EYE = torch.eye(4, dtype=torch.float64)
CONSTANT = torch.linspace(-1, 2, 16, dtype=torch.float64).view(4, 4)
TWINS: dict[str, tuple[tuple[int, ...], Mix, Mix]] = {
    "cumsum": ((4,), lambda h: h.cumsum(1), lambda h: h.cumsum(0)),
    "softmax": ((4,), lambda h: h.softmax(1), lambda h: h.softmax(0)),
    "flip": ((4,), lambda h: h + 2 * h.flip(1), lambda h: h + 2 * h.flip(0)),
    "roll": ((4,), lambda h: h + 2 * h.roll(1, 1), lambda h: h + 2 * h.roll(1, 0)),
    "sum": ((4, 4), lambda h: h.sum(1), lambda h: h.sum(0)),
    "mean": ((4, 4), lambda h: h.mean(1), lambda h: h.mean(0)),
    "max": ((4, 4), lambda h: h.amax(1), lambda h: h.amax(0)),
    "select": ((4, 4), lambda h: h.select(1, 0), lambda h: h.select(0, 0)),
    "transpose": (
        (4, 4),
        lambda h: h.transpose(1, 2).mean(1),
        lambda h: h.transpose(0, 1).mean(1),
    ),
    "permute": (
        (4, 4),
        lambda h: h.permute(0, 2, 1).mean(1),
        lambda h: h.permute(2, 1, 0).mean(1),
    ),
    "stack": (
        (4,),
        lambda h: torch.stack([h, h.tanh(), h, h], 1).mean(1),
        lambda h: torch.stack([h, h.tanh(), h, h], 0).mean(1),
    ),
    "split": (
        (4,),
        lambda h: torch.cat(h.split(2, 1), 1) + torch.cat(h.split(2, 1)[::-1], 1),
        lambda h: torch.cat(h.split(2, 0), 0) + torch.cat(h.split(2, 0)[::-1], 0),
    ),
    "sort": ((4,), lambda h: h + h.sort(1).values, lambda h: h + h.sort(0).values),
    "index": ((4,), lambda h: h + h[torch.arange(4)], lambda h: h + 2 * h[PERMUTED]),
    "constant matrix": (
        (4,),
        lambda h: torch.eye(4, dtype=torch.float64) @ h,
        lambda h: CONSTANT @ h,
    ),
    "a function that sounds like attention": (
        (4,),
        lambda h: ScaledDotProductPacked.apply(h, EYE),
        lambda h: ScaledDotProductPacked.apply(h, CONSTANT),
    ),
    "mask": (
        (4,),
        lambda h: h + 0 * h.flip(0),
        lambda h: h + 2 * h.flip(0),
    ),
    "constant matrix added to": (
        (4,),
        lambda h: torch.addmm(torch.ones(4, dtype=torch.float64), EYE, h),
        lambda h: torch.addmm(torch.ones(4, dtype=torch.float64), CONSTANT, h),
    ),
    "a number": ((4,), lambda h: h + 0.0 * h.roll(1, 0), lambda h: h + 2.0 * h.roll(1, 0)),
    "a gate": (
        (4,),
        lambda h: h + torch.zeros(()) * h.roll(1, 0),
        lambda h: h + torch.ones(()) * h.roll(1, 0),
    ),
    "attention mask": (
        (4,),
        lambda h: (h @ h.t()).masked_fill(torch.eye(4) == 0, -torch.inf).softmax(1) @ h,
        lambda h: (h @ h.t()).masked_fill(torch.eye(4) == 1, -torch.inf).softmax(1) @ h,
    ),
}


@pytest.mark.parametrize("name", sampled(TWINS, 3))
@pytest.mark.parametrize("kind", KINDS)
def test_graphs_that_look_the_same(kind, name):
    """Whichever is measured first."""
    shape, apart, together = TWINS[name]
    for mix in (apart, together, apart):
        assert_right(mixed(mix, *shape), kind)


class FrozenAbove(nn.Module):
    """A trained layer below a frozen one of the form b + alpha x A."""

    def __init__(self) -> None:
        super().__init__()
        self.below = nn.Linear(3, 4)
        self.register_buffer("a", rand(4, 3))
        self.register_buffer("b", rand(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b, self.below(x).relu(), self.a, alpha=0.5)


class Gated(nn.Module):
    """Parameters without an axis, as in CLIP's temperature or ReZero, and a bias that all outputs share."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.layer.bias = nn.Parameter(rand(1))
        self.scale, self.shift = nn.Parameter(rand()), nn.Parameter(rand())
        self.out = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layer(x).relu() * self.scale + self.shift)


@pytest.mark.parametrize("model", [FrozenAbove, Gated])
@pytest.mark.parametrize("kind", KINDS)
def test_unusual_layers(kind, model):
    assert_right(build(lambda: general(model(), rand(5, 3))), kind)


class Masked(nn.Module):
    """A shift of all activations, [features, N], of which a mask takes some away."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 3)
        self.shift = nn.Parameter(rand())
        self.mask = mask

    def forward(self, x: Tensor) -> Tensor:
        shifted = self.first(x).t() + self.shift
        return self.second(shifted.masked_fill(self.mask, 0).t().tanh())


def test_an_axis_that_only_seems_to_hold_the_examples():
    """Where a mask leaves one feature of each example, features look like examples; the next mask shows that they are none."""
    for mask in (~torch.eye(4, dtype=torch.bool), torch.zeros(4, 4, dtype=torch.bool)):
        assert_right(build(partial(general, Masked(mask), rand(4, 3), targets=labels(4))), "ggn")


class Scaled(nn.Module):
    """b + alpha x A, as low-rank adapters have it."""

    def __init__(self, alpha: float) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(rand(3, 3)), nn.Parameter(rand(3))
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.b, x, self.a, alpha=self.alpha)


@pytest.mark.parametrize("kind", KINDS)
def test_factors_of_a_layer_that_looks_the_same(kind):
    for alpha in (1.0, 2.0, 0.5, 1.0):
        assert_right(build(lambda a=alpha: general(Scaled(a), rand(5, 3))), kind)


@pytest.mark.parametrize("name", ["minus the mean", "minus the first", "the next one"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_head_that_starts_at_zero(kind, name):
    """Nothing flows back through it at the start: that says nothing of how samples interact after a step."""
    rows = 7  # with a structure that no other test measures
    start = mixed(MIXES[name], rows)
    with torch.no_grad():
        start.model.second.weight.zero_()
    assert_right(start, kind)
    assert_right(mixed(MIXES[name], rows), kind)


@pytest.mark.parametrize("kind", KINDS)
def test_a_margin_that_no_sample_violates(kind):
    """At first; then samples interact, by the same operations."""

    def loss_with(margin: float) -> Callable[[Tensor, Tensor], Tensor]:
        return lambda out, y: (
            (out - y).pow(4).mean() + (out.flip(0) - out + margin).relu().square().mean()
        )

    for margin in (-50.0, 5.0):
        case = build(
            lambda m=margin: general(nn.Linear(3, 3), rand(4, 3), loss_with(m), rand(4, 3))
        )
        assert_right(case, kind)


@pytest.mark.parametrize("order", [(6, 4), (4, 6), (4, 4)])
@pytest.mark.parametrize("kind", KINDS)
def test_sequences_before_batches(kind, order):
    """[T, N, features], also where both are equal and only the output tells which is which."""
    steps, rows = order
    case = build(
        lambda: general(
            Mixed(lambda h: h.tanh().sum(0)), rand(steps, rows, 3), targets=labels(rows)
        )
    )
    assert_right(case, kind)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("samples", [2, 3, 16, 63, 64, 65, 100, 4096, 4097])
def test_scalings_tell_any_two_samples_apart(samples, dtype):
    found = torch.stack(scalings(samples, dtype), 1)
    assert len(found.unique(dim=0)) == samples
    assert found.dtype == dtype
    assert bool((found > 0).all())
    assert bool(torch.isfinite(found).all())
    assert bool((torch.frexp(found.double())[0] == 0.5).all())  # powers of two
    if dtype == torch.float32:
        assert found.shape[1] == 1 + (samples > 64) + (samples > 4096)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("leak", [1.0, 1e-4])
@pytest.mark.parametrize("shape", [(5, 7), (7, 5), (3, 5, 4)])
def test_a_leak_between_any_two_samples_is_seen(shape, leak, dtype):
    samples = 5
    axis = shape.index(samples)
    layout = Layout("axis", samples, axis)
    x = torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(0))

    def scaled(y: Tensor, scales: Tensor) -> Tensor:
        return (y.movedim(axis, -1) * scales).movedim(-1, axis)

    def mixed(y: Tensor, source: int, target: int) -> Tensor:
        rows = y.movedim(axis, 0).clone()
        rows[target] += leak * rows[source]
        return rows.movedim(0, axis)

    for scales in scalings(samples, dtype):
        assert follows_scaling(layout, scaled(3 * x, scales), 3 * x, scales)
        for source in range(samples):
            for target in range(samples):
                if source != target:
                    back, reference = (mixed(y, source, target) for y in (scaled(x, scales), x))
                    assert not follows_scaling(layout, back, reference, scales)

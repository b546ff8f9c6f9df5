"""estimate_trace over iterables of batches, and the forms that a batch's inputs may take."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import UserDict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from metacurv import TraceEstimate, estimate_trace
from tests.estimators.dense.case import Case, build, general
from tests.estimators.dense.checks import EXACT, assert_exact, assert_within_errors, measure
from tests.estimators.dense.truth import Truth, dense_truth
from tests.problems.problem import rand

KINDS = ("hessian", "ggn")
Batches = Iterable[tuple[Any, Any]]


def perceptron(loss_fn: Callable[..., Tensor], rows: int = 10) -> Case:
    layers = [nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)]
    return build(lambda: general(nn.Sequential(*layers), rand(rows, 3), loss_fn))


def loader(case: Case, size: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(case.inputs, case.targets), batch_size=size)


def pairs(case: Case, size: int) -> list[tuple[Any, Any]]:
    return list(zip(case.inputs.split(size), case.targets.split(size), strict=True))


def generator(case: Case, size: int) -> Iterator[tuple[Any, Any]]:
    yield from pairs(case, size)


FORMS: dict[str, Callable[[Case, int], Batches]] = {
    "data loader": loader,
    "list of pairs": pairs,
    "list of lists": lambda case, size: [list(pair) for pair in pairs(case, size)],
    "generator": generator,
}


def over(case: Case, batches: Batches, **options: Any) -> TraceEstimate:
    return estimate_trace(case.model, case.loss_fn, batches, **options)


# 8 + 2 samples, equal batches, one-sample batches, and one batch of all.
@pytest.mark.parametrize("size", [8, 5, 1, 10])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_a_mean_are_weighted_by_samples(kind, form, size):
    case = perceptron(F.cross_entropy)
    estimate = over(case, FORMS[form](case, size), kind=kind, method="exact")
    assert_exact(estimate, dense_truth(case))
    assert estimate.n_samples == 0


SUMS = {
    "module": nn.CrossEntropyLoss(reduction="sum"),
    "partial": functools.partial(F.cross_entropy, reduction="sum"),
    "weighted module": nn.CrossEntropyLoss(reduction="sum", label_smoothing=0.1),
}


@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_a_sum_add_up(kind, name):
    case = perceptron(SUMS[name])
    estimate = over(case, loader(case, 8), kind=kind, method="exact")
    assert_exact(estimate, dense_truth(case))


@pytest.mark.parametrize("method", ["activation", "hutchinson", "finite_difference"])
@pytest.mark.parametrize("loss_fn", [F.cross_entropy, SUMS["module"]])
def test_sampled_batches(loss_fn, method):
    case = perceptron(loss_fn)
    if method == "finite_difference":  # which would see the kinks of a ReLU
        case.model[1] = nn.Identity()
    truth = dense_truth(case)
    estimate = over(case, loader(case, 8), method=method, n_samples=60, seed=1)
    assert estimate.n_samples == 120
    assert_within_errors(estimate, truth)


def in_quadrature(weights: list[float], errors: list[float]) -> float:
    return math.hypot(*(w * e for w, e in zip(weights, errors, strict=True)))


@pytest.mark.parametrize("method", ["activation", "hutchinson"])
@pytest.mark.parametrize(
    ("loss_fn", "weights"), [(F.cross_entropy, [0.8, 0.2]), (SUMS["partial"], [1, 1])]
)
def test_errors_of_batches_are_independent(loss_fn, weights, method):
    """The first batch draws what it would draw alone; of the others only the size of the error is known."""
    case = perceptron(loss_fn)
    first, second = pairs(case, 8)
    alone = [over(case, [batch], method=method, n_samples=250) for batch in (first, second)]
    both = over(case, [first, second], method=method, n_samples=250)
    assert over(case, [first], method=method, n_samples=250) == alone[0]
    assert both.stderr == pytest.approx(in_quadrature(weights, [a.stderr for a in alone]), rel=0.15)
    for name, error in both.per_layer_stderr.items():
        errors = [a.per_layer_stderr[name] for a in alone]
        assert error == pytest.approx(in_quadrature(weights, errors), rel=0.25)


def test_equal_batches_draw_different_probes():
    """The same ones would make the error of the mean that of one batch, and the reported one too small."""
    case = perceptron(F.cross_entropy)
    batch = (case.inputs, case.targets)
    values, errors = [], []
    for seed in range(60):
        estimate = over(case, [batch] * 4, method="activation", n_samples=4, seed=seed)
        values.append(estimate.value)
        errors.append(estimate.stderr)
    spread = torch.tensor(values).std().item()
    # 60 values tell their spread to 9 %; with shared probes it would be twice the error.
    assert spread == pytest.approx(math.sqrt(sum(e * e for e in errors) / 60), rel=0.4)


def test_rtol_holds_of_each_batch():
    case = perceptron(F.cross_entropy)
    estimate = over(case, loader(case, 5), method="activation", rtol=0.1)
    assert estimate.converged
    assert estimate.stderr <= 0.1 * estimate.value
    with pytest.warns(UserWarning, match="max_samples"):
        stopped = over(case, loader(case, 5), method="activation", rtol=1e-4, max_samples=20)
    assert (stopped.n_samples, stopped.converged) == (40, False)


def test_every_batch_is_chosen_for():
    """A large batch may be worth no columns, a small one is."""
    case = perceptron(F.cross_entropy)
    estimate = over(case, loader(case, 8))
    assert estimate.method == "exact"
    assert estimate.value == pytest.approx(dense_truth(case).trace("hessian"), rel=EXACT)


class Blend(nn.Module):
    """Two inputs, told apart by their names."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(3, 4), nn.Linear(2, 4)
        self.out = nn.Linear(4, 3)

    def forward(self, left: Tensor, right: Tensor, *, scale: float = 1.0) -> Tensor:
        return self.out(scale * (self.left(left) + self.right(right)).relu())


@pytest.fixture
def blend() -> Case:
    return build(lambda: general(Blend(), (rand(10, 3), rand(10, 2))))


def named(inputs: tuple[Tensor, Tensor], **more: Any) -> dict[str, Any]:
    return {"right": inputs[1], "left": inputs[0], **more}


@pytest.mark.parametrize("kind", KINDS)
def test_tuples_are_arguments_and_mappings_keywords(blend, kind):
    truth = dense_truth(blend)
    assert_exact(measure(blend, kind=kind), truth)
    with_names = Case(blend.model, F.cross_entropy, named(blend.inputs), blend.targets)
    assert_exact(measure(with_names, kind=kind), truth)


@pytest.mark.parametrize("method", ["activation", "hutchinson"])
def test_keywords_by_sampling_methods(blend, method):
    case = Case(blend.model, F.cross_entropy, named(blend.inputs), blend.targets)
    estimate = measure(case, method=method, n_samples=200)
    assert_within_errors(estimate, dense_truth(blend))


def test_batches_of_tuples_and_of_mappings(blend):
    truth: Truth = dense_truth(blend)
    cuts = [(slice(0, 8), blend.targets[:8]), (slice(8, 10), blend.targets[8:])]
    tuples = [(tuple(x[cut] for x in blend.inputs), target) for cut, target in cuts]
    assert_exact(over(blend, tuples), truth)
    assert_exact(over(blend, [(named(inputs), target) for inputs, target in tuples]), truth)


def test_a_keyword_that_is_no_tensor(blend):
    """It comes first, and is not what the samples are counted by."""
    doubled = Case(
        blend.model, F.cross_entropy, {"scale": 1.0, **named(blend.inputs)}, blend.targets
    )
    assert_exact(measure(doubled), dense_truth(blend))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["exact", "activation", "hutchinson"])
def test_one_sample(kind, method):
    case = perceptron(F.cross_entropy, rows=1)
    estimate = measure(case, method=method, kind=kind, n_samples=200)
    (assert_exact if method == "exact" else assert_within_errors)(estimate, dense_truth(case))


def test_targets_may_be_none_beside_a_tensor():
    """An autoencoder's loss, say: a tensor is a batch, not an iterable of batches."""
    case = build(
        lambda: general(nn.Linear(3, 3), rand(4, 3), lambda output, _: output.pow(4).mean(), None)
    )
    truth = dense_truth(Case(case.model, case.loss_fn, case.inputs, None))
    assert_exact(measure(Case(case.model, case.loss_fn, case.inputs, None)), truth)


class Record(UserDict):
    """As tokenizers of Hugging Face give it: a mapping that torch's tree functions take for a leaf."""


@dataclasses.dataclass
class Fields:
    x: Tensor


class Point(NamedTuple):
    """One argument, and no tuple of them."""

    x: Tensor


class Opens(nn.Module):
    """Takes its tensor out of what it is given."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Tensor:
        return self.inner(x.x if isinstance(x, (Fields, Point)) else x)


@pytest.mark.parametrize("form", [lambda x: Record(x=x), Fields, lambda x: Point(x), lambda x: x])
@pytest.mark.parametrize("method", ["exact", "activation"])
def test_inputs_in_forms_of_their_own(form, method):
    """8 + 2 samples: weights 0.8 and 0.2, and as precise as plain tensors."""
    case = perceptron(F.cross_entropy)
    model = Opens(case.model)
    batches = [(form(x), y) for x, y in pairs(case, 8)]
    plain = over(case, pairs(case, 8), method=method, n_samples=8)
    found = estimate_trace(model, case.loss_fn, batches, method=method, n_samples=8)
    assert found.value == pytest.approx(plain.value, rel=1e-9)
    assert found.stderr == pytest.approx(plain.stderr, rel=1e-9)


def test_batches_without_a_length():
    """Their weights are not known, unless losses add up."""

    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.ones(2, dtype=torch.float64))

        def forward(self, _: str) -> Tensor:
            return self.w.exp()

    batches = [("a", rand(2)), ("b", rand(2))]
    with pytest.raises(
        ValueError, match=r"length is the number of samples.* got str 'b' in batch 1"
    ):
        estimate_trace(Constant(), nn.MSELoss(), batches)
    assert estimate_trace(Constant(), nn.MSELoss(reduction="sum"), batches).n_samples >= 0


def test_batches_whose_traces_cancel():
    """Each to 20 %, their sum not: said, and not taken for converged."""
    layers = [nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(4 - 1, 3)]
    case = build(lambda: general(nn.Sequential(*layers), rand(16, 3)))
    signs = iter(())

    def loss_fn(z: Tensor, y: Tensor) -> Tensor:
        return next(signs) * F.cross_entropy(z, y)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        nonlocal signs
        for sign in (1.0, -1.0):
            signs = iter([sign] * 10_000)
            yield case.inputs, case.targets

    with pytest.warns(UserWarning, match="batches whose traces cancel"):
        found = estimate_trace(case.model, loss_fn, batches(), rtol=0.2, method="hutchinson")
    assert not found.converged
    assert "cancel" in found.why


def test_a_bad_batch_is_named():
    case = perceptron(F.cross_entropy)
    batches = pairs(case, 5)
    batches[1][0].fill_(math.nan)
    with pytest.raises(ValueError, match=r"batch 1 of inputs \(counted from 0\): .*finite"):
        over(case, batches)


def test_the_order_of_a_loader_is_not_moved_on():
    case = perceptron(F.cross_entropy)
    own = torch.Generator().manual_seed(3)
    data = TensorDataset(case.inputs, case.targets)
    shuffled = DataLoader(data, batch_size=5, shuffle=True, generator=own)
    before = own.get_state()
    over(case, shuffled, method="exact")
    assert torch.equal(own.get_state(), before)


def test_two_samples_are_too_few_to_converge():
    """By chance a standard error of two is small: one seed in fifty."""
    case = perceptron(F.cross_entropy)
    for seed in range(100):
        with pytest.warns(UserWarning, match="max_samples"):
            found = estimate_trace(
                case.model,
                case.loss_fn,
                case.inputs,
                case.targets,
                method="hutchinson",
                rtol=0.9,
                max_samples=2,
                seed=seed,
            )
        assert not found.converged

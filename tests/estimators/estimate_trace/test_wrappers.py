"""What stands between a model and its layers: hooks, checkpointing, custom functions, fused kernels, compilation."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.attention import SDPBackend, sdpa_kernel

import metacurv
from metacurv import NotTwiceDifferentiableError, TraceEstimate
from metacurv.estimators.select.methods import METHODS
from tests.estimators.dense.case import Case, Lambda, build, elementwise, general, labels, piecewise
from tests.estimators.dense.checks import assert_exact, assert_within_errors, measure
from tests.estimators.dense.losses import perceptron
from tests.estimators.dense.truth import KINDS, Truth, dense_ggn, dense_hessian, dense_truth
from tests.helpers import sampled
from tests.problems.model_problems import CubeTwiceDifferentiable
from tests.problems.modules import Checkpointed
from tests.problems.once_differentiable import FusedAttention, OnceCube, PlainAttention
from tests.problems.problem import rand

ALL = ("auto", *METHODS)
# What a refusal may be: it says what to do instead.
REFUSALS = (ValueError, NotTwiceDifferentiableError)
kinds = pytest.mark.parametrize("kind", KINDS)
methods = pytest.mark.parametrize("method", ALL)
activations = pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh])


def served(case: Case, method: str, kind: str, *, must: tuple[str, ...]) -> TraceEstimate | None:
    """None where a method that does not have to serve refuses."""
    try:
        return measure(case, method=method, kind=kind, n_samples=40)
    except REFUSALS as refusal:
        if method in must or not re.search("method|Curvature needs", str(refusal)):
            raise
    return None


def assert_right(estimate: TraceEstimate | None, truth: Truth) -> None:
    if estimate is None:
        return
    if estimate.method == "exact":
        assert_exact(estimate, truth)
    else:
        assert_within_errors(estimate, truth)


@activations
@kinds
def test_a_forward_hook_that_changes_the_output(kind, activation):
    model = perceptron(activation())
    model[0].register_forward_hook(lambda module, args, output: 2 * output.sin())
    case = build(lambda: elementwise(model, rand(6, 3)))
    truth = dense_truth(case)
    for method in ("auto", "exact", "activation", "hutchinson"):
        assert_right(served(case, method, kind, must=("auto", "activation", "hutchinson")), truth)


class Rescaled(nn.Module):
    """A hook on a tensor triples the gradient there, as for gradient reversal or per-layer scaling."""

    def __init__(self, activation: Callable[[], nn.Module], at: str) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(3, 4), activation(), nn.Linear(4, 3)
        self.at = at

    def hooked(self, h: Tensor, at: str) -> Tensor:
        if at == self.at:
            h.register_hook(lambda gradient: 3 * gradient)
        return h

    def forward(self, x: Tensor) -> Tensor:
        z = self.hooked(self.first(x), "layer")
        return self.hooked(self.second(self.hooked(self.act(z), "activation")), "output")


@pytest.mark.parametrize(
    ("kind", "at"),
    # The GGN begins at the output, before or after a hook there.
    [
        *((kind, at) for kind in KINDS for at in ("layer", "activation")),
        ("hessian", "output"),
    ],
)
@activations
@pytest.mark.parametrize("method", sampled(["auto", "exact", "activation"], 3))
def test_a_tensor_hook_that_changes_gradients(method, activation, kind, at):
    """What such a model trains by is no gradient of its loss: the loss's own curvature (which sees no hooks), autograd's
    derivative of what it trains by, or a refusal, but no third number.

    Whether a model without the hook, whose graph looks the same, was measured before or not.
    """
    plain, case = (
        build(lambda a=at: general(Rescaled(activation, a), rand(6, 3))) for at in ("none", at)
    )
    expected = {"hessian": dense_hessian, "ggn": dense_ggn}[kind](case).trace().item()
    assert abs(expected - dense_truth(plain).trace(kind)) > 0.5
    assert_right(served(plain, method, kind, must=("auto",)), dense_truth(plain))
    estimate = served(case, method, kind, must=("auto",))
    if estimate is not None:
        own = dense_truth(plain).trace(kind)
        error = min(abs(estimate.value - expected), abs(estimate.value - own))
        assert error <= 4 * estimate.stderr + 1e-9


@pytest.mark.parametrize(
    ("method", "activation"),
    # Differences see the kinks of ReLU.
    [*((m, nn.ReLU) for m in ALL[:3]), *((m, nn.Tanh) for m in ALL)],
)
@kinds
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing(reentrant, kind, method, activation):
    x = rand(6, 3).requires_grad_()  # or a reentrant checkpoint has no gradient at all

    def model() -> nn.Sequential:
        inner = Checkpointed(perceptron(activation()), reentrant=reentrant)
        return nn.Sequential(inner, nn.Linear(3, 3))

    case = build(lambda: general(model(), x))
    checkpointed, out = case.model
    plain = Case(nn.Sequential(checkpointed.inner, out), F.cross_entropy, x, labels(6))
    trace = dense_truth(plain).trace(kind)
    must = () if reentrant else ("auto", "hutchinson")
    try:
        estimate = measure(case, method=method, kind=kind, n_samples=40)
    except (*REFUSALS, RuntimeError) as refusal:
        if method in must or not re.search(r"method|heckpoint|Curvature needs", str(refusal)):
            raise
    else:
        assert abs(estimate.value - trace) <= 4 * estimate.stderr + 1e-9
    assert all(p.grad is None for p in case.model.parameters())
    assert x.grad is None


def twins(name: str) -> tuple[Case, Case]:
    """A model that autograd cannot differentiate twice, and the same function in operations that it can."""
    makes: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module], tuple[int, ...]]] = {
        "once differentiable": (
            lambda: perceptron(Lambda(OnceCube.apply)),
            lambda: perceptron(Lambda(lambda h: h**3)),
            (6, 3),
        ),
        "fused attention": (FusedAttention, PlainAttention, (2, 5, 4)),
    }
    fused, plain, shape = makes[name]
    first, second = (build(lambda m=make: general(m(), rand(*shape))) for make in (fused, plain))
    if name == "fused attention":
        tokens = labels(2, 5)
        first, second = (
            Case(
                c.model,
                lambda o, y: F.cross_entropy(o.flatten(0, 1), y.flatten()),
                c.inputs,
                tokens,
            )
            for c in (first, second)
        )
    return first, second


@pytest.mark.parametrize("name", ["once differentiable", "fused attention"])
@kinds
@methods
def test_without_a_second_derivative(method, kind, name):
    case, twin = twins(name)
    truth = dense_truth(twin)
    must = ("auto", "finite_difference") if kind == "hessian" else ("auto", "exact", "activation")
    if kind == "ggn" and method == "finite_difference":
        must = ()
    estimate = served(case, method, kind, must=must)
    assert_right(estimate, truth)
    if method == "auto":
        of_hessian = "split" if name == "fused attention" else "finite_difference"
        assert estimate.method == (of_hessian if kind == "hessian" else "exact")
    if method in ("split", "hutchinson") and kind == "hessian":
        assert (estimate is None) == (name == "once differentiable")


@kinds
@methods
def test_a_custom_function_with_a_second_derivative(method, kind):
    case = build(lambda: general(perceptron(Lambda(CubeTwiceDifferentiable.apply)), rand(6, 3)))
    assert_right(served(case, method, kind, must=("auto", "hutchinson")), dense_truth(case))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("backend", "activation"),
    [("eager", nn.Tanh), ("aot_eager", nn.ReLU), ("aot_eager", nn.Tanh)],
)
@pytest.mark.usefixtures("fresh_compiler")
def test_compiled_models(backend, activation):
    """As the model itself, or a refusal; auto always finds a way."""
    case = build(lambda: piecewise(perceptron(activation()), rand(6, 3)))
    truth = dense_truth(case)
    compiled = Case(torch.compile(case.model, backend=backend), *list(vars(case).values())[1:4])
    for method, kind in itertools.product(ALL, KINDS):
        estimate = served(compiled, method, kind, must=("auto",))
        if estimate is not None:
            error = 4 * estimate.stderr + 1e-8
            assert abs(estimate.value - truth.trace(kind)) <= error, method


@pytest.mark.usefixtures("fresh_compiler")
def test_a_compiled_model_is_measured_as_what_it_was_compiled_from():
    """Compiled ReLU has no second derivative, and finite differences see its kinks: 42 for 11.9, a newcomer found."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 30), nn.ReLU(), nn.Linear(30, 10))
    x, y = torch.randn(64, 40), torch.randint(10, (64,))
    plain = metacurv.estimate_trace(model, F.cross_entropy, x, y)
    compiled = torch.compile(model, backend="aot_eager")
    found = metacurv.estimate_trace(compiled, F.cross_entropy, x, y)
    assert (found.method, found.value) == ("exact", plain.value)
    assert compiled(x).grad_fn.name().startswith("CompiledFunction")  # still


class FusedEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.layer(x)).flatten(0, 1)


@pytest.mark.parametrize("method", ["auto", "hutchinson"])
def test_fused_attention_is_measured_unfused(method):
    """On CPU it has no second derivative; its ReLU lets finite differences down."""
    torch.manual_seed(0)
    model, x, y = FusedEncoder(), torch.randn(4, 5, 8), torch.randint(3, (20,))
    arguments = {"method": method, "n_samples": 8, "seed": 3}
    found = metacurv.estimate_trace(model, F.cross_entropy, x, y, **arguments)
    with sdpa_kernel(SDPBackend.MATH):
        unfused = metacurv.estimate_trace(model, F.cross_entropy, x, y, **arguments)
    assert found.method == ("split" if method == "auto" else method)
    assert found.value == pytest.approx(unfused.value, rel=1e-5)


class OnceRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    @once_differentiable
    def backward(ctx, g):
        return g * (ctx.saved_tensors[0] > 0)


def test_finite_differences_are_not_taken_over_kinks():
    torch.manual_seed(0)
    x, y = torch.randn(64, 40), torch.randint(10, (64,))

    def network(function):
        class Once(nn.Module):
            def forward(self, x):
                return function.apply(x)

        return nn.Sequential(nn.Linear(40, 30), Once(), nn.Linear(30, 10))

    bent = network(OnceRelu)
    with pytest.raises(
        NotTwiceDifferentiableError, match=r"OnceRelu.*once_differentiable.*see kinks"
    ):
        metacurv.estimate_trace(bent, F.cross_entropy, x, y)
    with pytest.raises(ValueError, match=r"method='finite_difference' is not right.*see kinks"):
        metacurv.estimate_trace(
            bent, F.cross_entropy, x, y, method="finite_difference", n_samples=4
        )
    smooth = metacurv.estimate_trace(network(OnceCube), F.cross_entropy, x, y, n_samples=16)
    assert smooth.method == "finite_difference"
    assert "once_differentiable" in smooth.why

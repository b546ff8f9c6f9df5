"""Custom functions in the graph: a backward pass that cannot be differentiated is an error, a right one raises none."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

import metacurv
from metacurv import (
    MetaCurvatureLR,
    NotTwiceDifferentiableError,
    directional_curvature,
    estimate_trace,
    hessian_trace,
)
from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.problem.elsewhere import elsewhere
from tests.helpers import sampled

Apply = Callable[[Tensor], Tensor]


def function(name: str, forward: Any, backward: Any) -> Apply:
    """A function of one tensor; ``forward`` gets the context, too."""
    made = type(
        name, (Function,), {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    )
    return made.apply  # type: ignore[attr-defined, no-any-return]


def saving(what: Callable[[Tensor], Tensor], result: Callable[[Tensor], Tensor]) -> Any:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(what(x))
        return result(x)

    return forward


def output_saved(result: Callable[[Tensor], Tensor]) -> Any:
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = result(x)
        ctx.save_for_backward(y)
        return y

    return forward


def data_kept(ctx: Any, x: Tensor) -> Tensor:
    ctx.x = x.data
    return x**3


def cube(x: Tensor) -> Tensor:
    return x**3


def itself(x: Tensor) -> Tensor:
    return x


class Product(Function):
    """x c k, with a constant tensor c and a number k."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, c: Tensor, k: float) -> Tensor:
        ctx.save_for_backward(x, c)
        ctx.k = k
        return x * c * k

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        _, c = ctx.saved_tensors
        return g * c * ctx.k, None, None


class Quotient(Function):
    """x over its norm, row by row, with ``setup_context``."""

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x / x.norm(dim=1, keepdim=True)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        n = x.norm(dim=1, keepdim=True)
        return (g - x / n * (g * x / n).sum(1, keepdim=True)) / n


class QuotientHiding(Quotient):
    """The same, but the norm, which forward has computed, is saved."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], inputs[0].norm(dim=1, keepdim=True))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        x, n = ctx.saved_tensors
        return (g - x / n * (g * x / n).sum(1, keepdim=True)) / n


class Both(Function):
    """Sine and cosine."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x)
        return x.sin(), x.cos()

    @staticmethod
    def backward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return a * x.cos() - b * x.sin()


class Matrix(Function):
    """x W."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return g @ w.t(), x.t() @ g


def weight(x: Tensor) -> Tensor:
    return (
        torch.randn(x.shape[1], x.shape[1], generator=torch.Generator().manual_seed(3))
        .to(x)
        .requires_grad_()
    )


def leaky(ctx: Any, x: Tensor) -> Tensor:
    ctx.slope = 0.1
    ctx.save_for_backward((x > 0).to(x))
    return torch.where(x > 0, x, ctx.slope * x)


def leaky_backward(ctx: Any, g: Tensor) -> Tensor:
    (mask,) = ctx.saved_tensors
    return g * (mask + (1 - mask) * ctx.slope)


RIGHT: dict[str, Apply] = {
    "cube": function("Cube", saving(itself, cube), lambda c, g: 3 * g * c.saved_tensors[0] ** 2),
    "exp, of its output": function(
        "Exp", output_saved(torch.exp), lambda c, g: g * c.saved_tensors[0]
    ),
    "relu, a mask": function(
        "Mask", saving(lambda x: (x > 0).to(x), torch.relu), lambda c, g: g * c.saved_tensors[0]
    ),
    "leaky relu, a mask and a number": function("Leaky", leaky, leaky_backward),
    "abs, signs": function(
        "Signs", saving(torch.sign, torch.abs), lambda c, g: g * c.saved_tensors[0]
    ),
    "relu, of bools": function(
        "Bools", saving(lambda x: x > 0, torch.relu), lambda c, g: g * c.saved_tensors[0]
    ),
    "relu, of its input": function(
        "Input", saving(itself, torch.relu), lambda c, g: g * (c.saved_tensors[0] > 0)
    ),
    "clamp": function(
        "Clamp",
        saving(itself, lambda x: x.clamp(-1, 1)),
        lambda c, g: g * (c.saved_tensors[0].abs() < 1),
    ),
    "straight through": function("Through", lambda c, x: x.round(), lambda c, g: g),
    "reversal": function("Reversal", lambda c, x: x.clone(), lambda c, g: -2 * g),
    "a constant input": lambda x: Product.apply(
        x, torch.linspace(0.5, 2, x.numel()).view_as(x).to(x), 2.0
    ),
    "two outputs": lambda x: Both.apply(x)[0] + 2 * Both.apply(x)[1],
    "one of two outputs": lambda x: Both.apply(x)[1],
    "a weight": lambda x: Matrix.apply(x, weight(x)),
    "rows": Quotient.apply,
}


def by_numpy(ctx: Any, g: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.from_numpy(3 * g.detach().numpy() * x.detach().numpy() ** 2)


class Difference(Function):
    """The squared distance from a constant, whose gradient forward has made."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, target: Tensor) -> Tensor:
        ctx.save_for_backward(2 * (x - target))
        return (x - target) ** 2

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g * ctx.saved_tensors[0], None


def keeping(keep: Callable[[Tensor], Any]) -> Any:
    """Forward of a cube that keeps something in an attribute."""

    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.kept = keep(x.detach())
        return x**3

    return forward


def scaled_by_norm(ctx: Any, x: Tensor) -> Tensor:
    ctx.norm = float(x.norm())
    return x * ctx.norm


FAULTY: dict[str, Apply] = {
    "all detached": function("Fault", saving(itself, cube), lambda c, g: (3 * g * c.saved_tensors[0] ** 2).detach()),
    "a factor detached": function("Fault", saving(itself, cube), lambda c, g: 3 * g * c.saved_tensors[0].detach() ** 2),
    "numpy": function("Fault", saving(itself, cube), by_numpy),
    "data kept": function("Fault", data_kept, lambda c, g: 3 * g * c.x**2),
    "made in forward": function("Fault", saving(lambda x: 3 * x**2, cube), lambda c, g: g * c.saved_tensors[0]),
    "a norm made in forward": QuotientHiding.apply,
    "once": function("Fault", saving(itself, cube), once_differentiable(lambda c, g: 3 * g * c.saved_tensors[0] ** 2)),
    "clipped": function("Fault", lambda c, x: x.clone(), lambda c, g: g.clamp(-0.1, 0.1)),
    "half of it": function(
        "Fault", saving(itself, lambda x: x.relu() ** 2), lambda c, g: 2 * g * c.saved_tensors[0].detach().relu()
    ),
    "in a list": function("Fault", keeping(lambda x: [x.clone()]), lambda c, g: 3 * g * c.kept[0] ** 2),
    "in a dict": function("Fault", keeping(lambda x: {"x": (1, x**2)}), lambda c, g: 3 * g * c.kept["x"][1]),
    "in an array": function(
        "Fault", keeping(lambda x: x.double().numpy()), lambda c, g: 3 * g * torch.from_numpy(c.kept**2).to(g)
    ),
    "beside a constant": lambda x: Difference.apply(x, torch.ones_like(x.detach())),
}  # fmt: skip
A_NUMBER: Apply = function("Fault", scaled_by_norm, lambda c, g: g * c.norm)
DTYPES = [torch.float32, torch.float64, torch.bfloat16]


def checked(
    apply: Apply,
    dtype: torch.dtype,
    seed: int,
    shape: tuple[int, ...] = (6, 6),
    *,
    alone: bool = False,
) -> None:
    """Checks a graph with the function in it, ``alone`` or where it can be made again; what it saved stays what it was."""

    def graph(w: Tensor) -> tuple[Tensor, Tensor]:
        inner = w * 1.3
        return (apply(inner) ** 2).sum() + w.sum(), inner

    w = torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = w.to(dtype).requires_grad_()
    loss, inner = graph(w)
    before = inner.detach().clone()
    again = None if alone else lambda: graph(*elsewhere([w]))[0]
    try:
        check_differentiable([loss.grad_fn], [w], again=again)  # type: ignore[list-item]
    finally:
        assert torch.equal(inner, before)
        assert inner._version == 0
    loss.backward()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RIGHT)
def test_right_ones_are_accused_of_nothing(name: str, dtype: torch.dtype, seed: int) -> None:
    checked(RIGHT[name], dtype, seed)
    if name != "a constant input":
        checked(RIGHT[name], dtype, seed, alone=True)


NAMES = r"Fault|QuotientHiding|Difference"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAULTY)
def test_faulty_ones_are_named(name: str, dtype: torch.dtype, seed: int) -> None:
    if name == "numpy" and dtype == torch.bfloat16:
        pytest.skip("numpy has no bfloat16")
    for alone in (False, True):
        with pytest.raises(NotTwiceDifferentiableError, match=NAMES):
            checked(FAULTY[name], dtype, seed, alone=alone)


def test_with_a_graph_alone_nobody_can_tell_a_constant() -> None:
    """A number is taken for one, as most are; a tensor is an error."""
    with pytest.raises(NotTwiceDifferentiableError, match=r"Product.* nobody can tell here"):
        checked(RIGHT["a constant input"], torch.float32, 0, alone=True)
    checked(A_NUMBER, torch.float32, 0, alone=True)
    with pytest.raises(NotTwiceDifferentiableError, match="Fault"):
        checked(A_NUMBER, torch.float32, 0)


@pytest.mark.parametrize("name", ["cube", "exp, of its output", "clamp", "a constant input"])
def test_of_many_elements_or_one(name: str) -> None:
    checked(RIGHT[name], torch.float32, 0, (200, 300))
    checked(RIGHT[name], torch.float32, 0, (1, 1))


@pytest.mark.parametrize("name", ["all detached", "a factor detached", "made in forward"])
def test_faults_of_many_elements_or_one(name: str) -> None:
    for shape in ((200, 300), (1, 1)):
        with pytest.raises(NotTwiceDifferentiableError):
            checked(FAULTY[name], torch.float32, 0, shape)


def test_a_library_operator_of_the_user_is_checked() -> None:
    with torch.library._scoped_library("metacurv_test", "FRAGMENT"):
        operator = torch.library.custom_op(
            "metacurv_test::square", lambda x: x * x, mutates_args=(), schema="(Tensor x) -> Tensor"
        )
        operator.register_autograd(
            lambda ctx, g: 2 * g * ctx.saved_tensors[0].detach(),
            setup_context=lambda ctx, inputs, output: ctx.save_for_backward(inputs[0]),
        )
        with pytest.raises(NotTwiceDifferentiableError, match="square"):
            checked(operator, torch.float32, 0)


def test_inside_a_checkpoint_what_was_saved_is_made_anew() -> None:
    """Moving it would change nothing, so that only linearity is checked: no right one is accused, a detached one is."""

    def through(apply: Apply) -> Apply:
        return lambda x: torch.utils.checkpoint.checkpoint(apply, x, use_reentrant=False)  # type: ignore[no-any-return]

    checked(through(RIGHT["cube"]), torch.float32, 0)
    with pytest.raises(NotTwiceDifferentiableError):
        checked(through(FAULTY["all detached"]), torch.float32, 0)


# Every entry.

CUBE = RIGHT["cube"]
BAD = FAULTY["all detached"]


def test_the_trace_of_a_loss() -> None:
    w = nn.Parameter(torch.tensor([2.0]))
    assert hessian_trace(CUBE(w).sum() + w.square().sum(), [w], n_samples=2).value == pytest.approx(
        14
    )
    for loss in (BAD(w).sum() + w.square().sum(), BAD(w).sum()):
        with pytest.raises(
            NotTwiceDifferentiableError, match=r"holds Fault, a torch\.autograd\.Function"
        ):
            hessian_trace(loss, [w], n_samples=2)


class Wrapped(nn.Module):
    def __init__(self, apply: Apply) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)
        self.apply_ = apply

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.outer(self.apply_(torch.tanh(self.inner(x))))
        return out


def problem(apply: Apply) -> tuple[Any, ...]:
    torch.manual_seed(0)
    return Wrapped(apply), nn.functional.mse_loss, torch.randn(8, 3), torch.randn(8, 2)


@pytest.mark.parametrize(
    "fault", ["all detached", "a factor detached", "made in forward", "numpy", "data kept"]
)
def test_estimates_of_a_model(fault: str) -> None:
    truth = estimate_trace(*problem(CUBE), method="hutchinson", n_samples=4)
    assert truth.why.endswith("checked: Cube")
    assert "checked: Cube" in estimate_trace(*problem(CUBE), n_samples=4).why
    found = estimate_trace(*problem(FAULTY[fault]), n_samples=4)
    assert found.method == "finite_difference"
    assert "Fault, a torch.autograd.Function whose" in found.why
    assert found.value == pytest.approx(truth.value, rel=1e-3)
    with pytest.raises(NotTwiceDifferentiableError, match="Fault"):
        estimate_trace(*problem(FAULTY[fault]), method="hutchinson", n_samples=4)


def test_the_gauss_newton_matrix_needs_one_backward_pass_of_the_model() -> None:
    """Which is right, whatever cannot be differentiated in it; samples in parameter space need the derivative."""
    truth = estimate_trace(*problem(CUBE), kind="ggn", method="exact").value
    for fault in ("all detached", "a factor detached", "made in forward"):
        found = estimate_trace(*problem(FAULTY[fault]), kind="ggn")
        assert (found.method, found.value) == ("exact", pytest.approx(truth))
    with pytest.raises(NotTwiceDifferentiableError, match="Fault"):
        estimate_trace(*problem(BAD), kind="ggn", method="hutchinson", n_samples=4)


class Before(nn.Module):
    """A function that no parameter goes through."""

    def __init__(self, apply: Apply) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.apply_ = nn.Linear(3, 2), apply

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.apply_(x))
        return out


def with_penalty(output: Tensor, penalty: Tensor) -> Tensor:
    return output.square().mean() + penalty


def test_beside_the_way_to_the_parameters_a_fault_does_no_harm() -> None:
    x, w = torch.randn(8, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    for options in ({"method": "hutchinson"}, {"method": "hutchinson", "kind": "ggn"}, {}):
        bad, good = (
            estimate_trace(
                Before(apply), with_penalty, x, apply(w).sum(), n_samples=4, **options
            ).value  # type: ignore[call-overload]
            for apply in (BAD, CUBE)
        )
        assert bad == pytest.approx(good, rel=1e-6)
    u = [torch.ones(2, 3), torch.ones(2)]
    bad, good = (
        directional_curvature(Before(apply), with_penalty, x, apply(w).sum(), u, kind="hessian")
        for apply in (BAD, CUBE)
    )
    assert bad == pytest.approx(good, rel=1e-6)


def test_curvature_along_a_direction() -> None:
    model, *others = problem(CUBE)
    u = [torch.randn_like(p) for p in model.parameters()]
    truth = directional_curvature(model, *others, u, kind="hessian")
    faulty, *others = problem(FAULTY["a factor detached"])
    with pytest.raises(NotTwiceDifferentiableError, match="Fault"):
        directional_curvature(faulty, *others, u, kind="hessian")
    assert directional_curvature(faulty, *others, u, kind="ggn") != truth


class FusedCrossEntropy(Function):
    """Makes its gradient in forward; the targets are a constant input."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor) -> Tensor:
        gradient = logits.softmax(-1)
        gradient[torch.arange(len(targets)), targets] -= 1
        ctx.save_for_backward(gradient / len(targets))
        return nn.functional.cross_entropy(logits, targets)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return ctx.saved_tensors[0] * g, None


def test_a_fused_cross_entropy_with_targets() -> None:
    """It came out as 0 (exact)."""
    torch.manual_seed(0)
    model, x, y = nn.Linear(4, 3), torch.randn(8, 4), torch.randint(3, (8,))
    fused_loss: Any = FusedCrossEntropy.apply
    found = estimate_trace(model, fused_loss, x, y, n_samples=400)
    truth = estimate_trace(model, nn.functional.cross_entropy, x, y).value
    assert found.method == "finite_difference"
    assert abs(found.value - truth) <= 4 * found.stderr
    for method in ("auto", "exact", "activation", "hutchinson"):
        with pytest.raises((ValueError, NotTwiceDifferentiableError), match="FusedCrossEntropy"):
            estimate_trace(model, fused_loss, x, y, kind="ggn", method=method)  # type: ignore[arg-type]
    with pytest.raises(NotTwiceDifferentiableError, match="FusedCrossEntropy"):
        hessian_trace(fused_loss(model(x), y), model.parameters())
    with pytest.raises(NotTwiceDifferentiableError, match="FusedCrossEntropy"):
        directional_curvature(model, fused_loss, x, y, [torch.ones(3, 4), torch.ones(3)])
    rule = MetaCurvatureLR(
        torch.optim.Adam(model.parameters()),
        model=model,
        loss_fn=fused_loss,
        probe=[(x, y)],
        horizon=9,
    )
    fused_loss(model(x), y).backward()
    with pytest.raises(NotTwiceDifferentiableError, match="FusedCrossEntropy"):
        rule.step()
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.1)
    with pytest.raises(NotTwiceDifferentiableError, match="FusedCrossEntropy"):
        opt.update_curvature(fused_loss(model(x), y))


class FusedLoss(Function):
    """Half a squared error that makes its gradient in forward, as fused cross-entropies do."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        ctx.save_for_backward(2 * output)
        return (output * output).sum()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (gradient,) = ctx.saved_tensors
        return gradient * g


def fused(output: Tensor, _: Any) -> Tensor:
    loss: Tensor = FusedLoss.apply(output)
    return loss


@pytest.mark.parametrize(
    "x", [torch.ones(3, 2), torch.arange(6.0).view(3, 2)], ids=["equal", "apart"]
)
def test_a_loss_that_makes_its_gradient_in_forward(x: Tensor) -> None:
    model = nn.Linear(2, 1, bias=False)
    for kind in ("hessian", "ggn"):
        for method in ("exact", "activation", "hutchinson"):
            with pytest.raises(
                (ValueError, NotTwiceDifferentiableError),
                match=r"FusedLoss, a torch\.autograd\.Function",
            ):
                estimate_trace(model, fused, x, x, kind=kind, method=method)  # type: ignore[arg-type]
    with pytest.raises(NotTwiceDifferentiableError, match="FusedLoss"):
        estimate_trace(model, fused, x, x, kind="ggn")
    found = estimate_trace(model, fused, x, x, n_samples=400)
    assert found.method == "finite_difference"
    assert abs(found.value - 2 * float(x.square().sum())) <= 4 * found.stderr
    with pytest.raises(NotTwiceDifferentiableError, match="FusedLoss"):
        hessian_trace(fused(model(x), None), model.parameters())
    with pytest.raises(NotTwiceDifferentiableError, match="FusedLoss"):
        directional_curvature(model, fused, x, x, [torch.ones(1, 2)])


def test_both_rules_refuse_it_before_anything_changes() -> None:
    model, x = nn.Linear(2, 1, bias=False), torch.randn(16, 2)
    before = model.weight.detach().clone()
    rule = MetaCurvatureLR(
        torch.optim.Adam(model.parameters()), model=model, loss_fn=fused, probe=[(x, x)], horizon=50
    )
    fused(model(x), None).backward()
    with pytest.raises(NotTwiceDifferentiableError, match="FusedLoss"):
        rule.step()
    assert torch.equal(model.weight, before)
    for options in ({}, {"model": model, "estimator": "auto"}):
        opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.1, **options)  # type: ignore[call-overload]
        with pytest.raises(NotTwiceDifferentiableError, match="FusedLoss"):
            opt.update_curvature(fused(model(x), None))


def with_graph(make: Callable[[Tensor], Tensor]) -> Any:
    w = nn.Parameter(torch.tensor([2.0]))
    opt = MetaCurvatureLR(torch.optim.SGD([w], lr=0.1), alpha=0.01)
    make(w).backward(create_graph=True)
    opt.step()
    return opt.last_estimate


@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_that_carry_a_graph() -> None:
    assert with_graph(lambda w: CUBE(w).sum() + w.square().sum()).value == pytest.approx(14)
    for fault in ("once", "all detached", "a factor detached"):
        for make in (
            lambda w, f=FAULTY[fault]: f(w).sum() + w.square().sum(),
            lambda w, f=FAULTY[fault]: w.square().sum() + f(w).sum(),
        ):
            with pytest.raises(NotTwiceDifferentiableError):
                with_graph(make)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_gradients_behind_a_function_that_cuts_their_graph() -> None:
    """The gradient of the first layer carries none, that of the second leads to the function."""
    model, loss_fn, x, y = problem(FAULTY["once"])
    opt = MetaCurvatureLR(torch.optim.SGD(model.parameters(), lr=0.1), alpha=0.01)
    loss_fn(model(x), y).backward(create_graph=True)
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(NotTwiceDifferentiableError):
        opt.step()
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


# Graphs made at random.

PLAIN: list[Apply] = [
    torch.tanh,
    torch.sin,
    torch.relu,
    lambda x: x * x,
    lambda x: x + x.mean(),
    lambda x: x.flip(0),
    lambda x: x @ x.t(),
]
# Rows of zeros have no direction; and where numbers are rounded, what a function keeps of them is a constant in pieces.
FINITE = {name: f for name, f in RIGHT.items() if name not in ("rows", "straight through")}


class RandomGraph(nn.Module):
    """Functions of a parameter, one after the other, and a part of the loss after some."""

    def __init__(self, functions: list[Apply], seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.w = nn.Parameter(torch.randn(5, 5, generator=generator, dtype=torch.float64))
        self.functions, self.seed = functions, seed

    def forward(self, _: Tensor) -> Tensor:
        drawn = random.Random(self.seed)
        x, total = self.w, self.w.square().sum()
        for apply in self.functions:
            x = apply(x / (1 + x.detach().norm()) * 5)
            if drawn.random() < 0.3:
                total = total + x.sin().sum()
        return total + x.square().sum()


def identity(output: Tensor, _: Any) -> Tensor:
    return output


@pytest.mark.parametrize("has_model", [False, True], ids=["of a loss", "of a model"])
@pytest.mark.parametrize("seed", sampled(range(60), 3))
def test_random_graphs(seed: int, has_model: bool) -> None:
    """Of functions that are right, and then with a faulty one somewhere, which must be found and named."""
    drawn = random.Random(seed)
    right = dict(FINITE)
    faults = {name: f for name, f in FAULTY.items() if name != "a norm made in forward"}
    if has_model:
        faults["a number"] = A_NUMBER
    else:
        del right["a constant input"]
    parts = drawn.choices([*PLAIN, *right.values()], k=drawn.randint(2, 6))
    place, fault = drawn.randrange(len(parts) + 1), drawn.choice(list(faults))

    def trace(functions: list[Apply], backend: str = "auto") -> float:
        graph, x = RandomGraph(functions, seed), torch.ones(1)
        if has_model:
            return estimate_trace(
                graph, identity, x, x, method="hutchinson", n_samples=2, backend=backend
            ).value
        return hessian_trace(graph(x), graph.parameters(), n_samples=2, backend=backend).value

    assert trace(parts) == pytest.approx(trace(parts, "reference"))
    with pytest.raises(NotTwiceDifferentiableError, match=NAMES):
        trace([*parts[:place], faults[fault], *parts[place:]])


def test_the_check_is_public_only_through_errors() -> None:
    assert not hasattr(metacurv, "check_differentiable")

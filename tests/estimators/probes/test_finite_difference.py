"""Hessian samples from two gradients: against dense float64 Hessians, and nothing of the user's is left changed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from metacurv import NotTwiceDifferentiableError, hessian_trace
from metacurv.estimators.probes.finite_difference import FiniteDifference
from metacurv.estimators.problem.model_loss import ModelLoss
from metacurv.estimators.problem.parameters import number_parameters
from tests.helpers import BACKENDS, assert_same, needs_native
from tests.problems.model_problems import PlainNorm
from tests.problems.modules import TiedEmbedding, perceptron_around
from tests.problems.once_differentiable import FusedAttention, OnceCube, PlainAttention
from tests.problems.problem import Problem, classify, func_hessian, rand
from tests.problems.samples import Samples, dense_samples

PROBES = 4
SEED = 3


@dataclass
class Case:
    """``twin``: the same function in operations that torch.func can differentiate twice."""

    model: nn.Module
    inputs: Tensor
    twin: nn.Module | None = None

    def problem(self) -> ModelLoss:
        return ModelLoss(
            self.model,
            lambda output, _: classify(output),
            self.inputs,
            None,
            number_parameters(self.model.named_parameters()),
        )

    def difference(self, backend: str = "auto", step: float | None = None) -> FiniteDifference:
        return FiniteDifference(self.problem(), seed=SEED, backend=backend, step=step)

    def truth(self) -> Samples:
        twin = self.twin or self.model
        params = {name: p.double() for name, p in self.model.named_parameters()}
        live = {n: p.detach().requires_grad_(p.requires_grad) for n, p in params.items()}
        inputs = self.inputs.double() if self.inputs.is_floating_point() else self.inputs
        problem = Problem(live, lambda p: classify(functional_call(twin, dict(p), (inputs,))))
        return dense_samples(problem, func_hessian(problem), probes=PROBES, seed=SEED)

    def error(self, samples: Tensor) -> float:
        """The largest, of any probe and parameter, relative to the scale of the samples."""
        truth = self.truth()
        return abs(samples.numpy() - truth.parts).max() / truth.scale


CASES: dict[str, Callable[[], Case]] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make
    return make


def build(name: str) -> Case:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        made = CASES[name]()
        for module in (made.model, made.twin):
            if module is not None:
                module.double()
        return made


@case
def mlp():
    return Case(perceptron_around(nn.Identity()), rand(7, 4))


@case
def conv_with_frozen_and_unused_parameters():
    model = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.SiLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    model[0].bias.requires_grad_(False)
    model.register_parameter("unused", nn.Parameter(torch.ones(3)))
    model.register_parameter("empty", nn.Parameter(torch.ones(0)))
    return Case(model, rand(4, 1, 6, 6))


@case
def strided_parameters():
    model = perceptron_around(nn.Identity())
    model[0].weight = nn.Parameter(rand(4, 10).t()[::2])
    model[3].weight = nn.Parameter(rand(5, 3).t())
    return Case(model, rand(7, 4))


@case
def tied_embedding_with_checkpoint():
    class WithCheckpoint(TiedEmbedding):
        def block(self, x):
            return checkpoint(super().block, x, use_reentrant=False)

    twin = TiedEmbedding(6)
    return Case(WithCheckpoint(6), torch.tensor([[0, 3, 5, 1], [2, 2, 4, 0]]), twin)


@case
def sparse_gradients():
    def network(*, sparse: bool) -> nn.Module:
        return nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Tanh(), nn.Linear(3, 2))

    return Case(network(sparse=True), torch.tensor([0, 3, 3, 1]), network(sparse=False))


@case
def batch_norm_in_train_mode():
    return Case(
        perceptron_around(nn.BatchNorm1d(5)), rand(7, 4), perceptron_around(PlainNorm(5, dim=0))
    )


@case
def layer_norm():
    return Case(
        perceptron_around(nn.LayerNorm(5)), rand(7, 4), perceptron_around(PlainNorm(5, dim=-1))
    )


@case
def fused_attention():
    return Case(FusedAttention(), rand(2, 5, 4), PlainAttention())


class Cube(nn.Module):
    def __init__(self, cube):
        super().__init__()
        self.cube = cube

    def forward(self, x):
        return self.cube(x)


@case
def once_differentiable_function():
    return Case(
        perceptron_around(Cube(OnceCube.apply)), rand(7, 4), perceptron_around(Cube(lambda x: x**3))
    )


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_against_dense_hessian(name, backend):
    made = build(name)
    assert made.error(made.difference(backend).samples(0, PROBES)) < 1e-8


@pytest.mark.parametrize("name", ["fused_attention", "once_differentiable_function"])
def test_where_autograd_has_no_second_derivative(name):
    problem = build(name).problem()
    with pytest.raises(NotTwiceDifferentiableError):
        hessian_trace(problem.forward().loss, problem.model.named_parameters())


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 5e-4), (torch.bfloat16, 0.2)])
@pytest.mark.parametrize("name", ["mlp", "layer_norm", "fused_attention"])
def test_lower_precision(name, dtype, bound):
    made = build(name)
    made.model.to(dtype)
    made.inputs = made.inputs.to(dtype)
    assert made.error(made.difference().samples(0, PROBES)) < bound


@needs_native
def test_native_equals_reference_and_probes_can_be_split():
    made = build("mlp")
    whole = made.difference("native").samples(5, 4)
    reference = made.difference("reference")
    assert_same(torch.cat([reference.samples(5, 1), reference.samples(6, 3)]), whole)


def test_autocast_of_the_caller():
    """Its cache of cast weights must not outlive a move of the parameters."""
    made = build("mlp")
    made.model.float()
    made.inputs = made.inputs.float()
    with torch.autocast("cpu", torch.bfloat16):
        before = made.model(made.inputs)
        samples = made.difference().samples(0, PROBES)
        assert_same(made.model(made.inputs), before)
    assert made.error(samples) < 0.2


def test_backward_passes_of_a_model_that_turns_autocast_off():
    class Off(nn.Module):
        def forward(self, x):
            with torch.autocast("cpu", enabled=False):
                return made.model(x)

    made = build("mlp")
    made.model.float()
    off = Case(Off(), made.inputs.float())
    off.model.add_module("model", made.model)
    plain = off.difference().samples(0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(off.difference().samples(0, 2), plain)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("name", ["batch_norm_in_train_mode", "tied_embedding_with_checkpoint"])
def test_under_modes_of_the_caller(name, mode):
    made = build(name)
    with mode():
        samples = made.difference().samples(0, PROBES)
    assert not samples.is_inference()
    assert made.error(samples) < 1e-8


def test_dropout_keeps_its_mask():
    made = build("mlp")
    made.model.insert(1, nn.Dropout(0.5))
    first = made.difference(step=1e-5).samples(0, 2)
    assert_same(made.difference(step=1e-5).samples(0, 2), first)
    # Another mask would add a difference of losses over the step, 1e5.
    assert bool((first.abs() < 10).all())
    torch.rand(1)
    assert not torch.equal(made.difference(step=1e-5).samples(0, 2), first)


def eps_step(tensors: list[Tensor], dtype: torch.dtype) -> float:
    flat = torch.cat([x.detach().flatten().double() for x in tensors])
    return 0.15 * torch.finfo(dtype).eps ** (1 / 3) * float(flat.square().mean().sqrt())


def test_step():
    made = build("mlp")
    parameters = list(made.model.parameters())
    assert made.difference().step == pytest.approx(eps_step(parameters, torch.float64))
    assert made.difference(step=0.25).step == 0.25

    class Narrow(nn.Module):
        def forward(self, x):
            return x.bfloat16()

    narrow = Case(nn.Sequential(made.model, Narrow()), made.inputs)
    assert narrow.difference().step == pytest.approx(eps_step(parameters, torch.bfloat16))
    for p in parameters:
        p.data.zero_()
    assert made.difference().step == pytest.approx(0.15 * torch.finfo(torch.float64).eps ** (1 / 3))


def test_kinks_count():
    """relu(w) has slope 0 on the left and 1 on the right of 0, which are both within a step of w = h / 2."""
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    model.weight.data.fill_(0.05)
    problem = ModelLoss(
        model,
        lambda output, _: output.relu().sum(),
        torch.ones(1, 1, dtype=torch.float64),
        None,
        number_parameters(model.named_parameters()),
    )
    samples = FiniteDifference(problem, seed=0, backend="auto", step=0.1).samples(0, 2)
    torch.testing.assert_close(samples, torch.full((2, 1), 1 / 0.2, dtype=torch.float64))


def everything(model: nn.Module) -> dict[str, object]:
    """All that a measurement could change."""
    return {
        "bits": [p.detach().clone().view(torch.uint8) for p in model.parameters() if p.numel()],
        "identities": [(id(p), p.data_ptr(), p._version) for p in model.parameters()],
        "flags": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else p.grad.clone() for p in model.parameters()],
        "buffers": copy.deepcopy(dict(model.named_buffers())),
        "modes": [module.training for module in model.modules()],
        "random": torch.get_rng_state(),
    }


class CheckpointedNorm(nn.Module):
    """Its statistics change again in the backward pass."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(5)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return checkpoint(lambda y: self.drop(self.norm(y)), x, use_reentrant=False)


def guarded() -> Case:
    model = perceptron_around(CheckpointedNorm()).double()
    model[0].weight.grad = rand(5, 4)
    model[0].bias.data[0] = -0.0
    model[3].eval()
    return Case(model, rand(7, 4))


def test_nothing_changes():
    made = guarded()
    before = everything(made.model)
    made.difference().samples(0, 3)
    assert_same(everything(made.model), before)


class Stop(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, Stop])
@pytest.mark.parametrize("call", [1, 2, 3, 4, 5])
def test_restored_when_the_model_raises(error, call):
    made = guarded()
    calls = []

    def count(*_):
        calls.append(1)
        if len(calls) == call:
            raise error

    made.model[3].register_forward_hook(count)
    before = everything(made.model)
    with pytest.raises(error):
        made.difference().samples(0, 3)
    assert_same(everything(made.model), before)


@pytest.mark.parametrize("raises", [False, True])
def test_an_earlier_graph_can_still_run_backward(raises):
    made = build("mlp")
    loss = made.problem().forward().loss
    expected = torch.autograd.grad(loss, list(made.model.parameters()), retain_graph=True)
    if raises:
        made.model[3].register_forward_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made.difference().samples(0, 1)
    else:
        made.difference().samples(0, 1)
    loss.backward()
    assert_same([p.grad for p in made.model.parameters()], list(expected))


def test_hooks_on_parameters_do_not_run():
    made = build("mlp")
    made.model[0].weight.register_hook(lambda _: 1 / 0)
    assert made.error(made.difference().samples(0, PROBES)) < 1e-8
    assert len(made.model[0].weight._backward_hooks) == 1


@pytest.mark.parametrize("overlap", ["whole", "part", "itself"])
def test_parameters_that_share_memory(overlap):
    made = build("mlp")
    weight = made.model[3].weight
    if overlap == "itself":
        made.model[0].bias = nn.Parameter(rand(1).expand(5))
        message = "must own each of their elements"
    else:
        made.model[0].bias = nn.Parameter(weight.data[0 if overlap == "whole" else 2])
        message = "must not share memory"
    before = everything(made.model)
    with pytest.raises(ValueError, match=message):
        made.difference().samples(0, 1)
    assert_same(everything(made.model), before)


def test_interleaved_parameters_do_not_share_memory():
    made = build("mlp")
    both = rand(5, 8)
    made.model[0].weight = nn.Parameter(both[:, ::2])
    made.model[0].register_parameter("other", nn.Parameter(both[:, 1::2]))
    assert made.error(made.difference().samples(0, PROBES)) < 1e-8


LOSSES: dict[str, tuple[Callable[[Tensor], object], type[Exception], str]] = {
    "nan": (lambda z: z.sum() * torch.nan, ValueError, "loss must be finite"),
    "two elements": (lambda z: z[0, :2], ValueError, "loss must be a scalar"),
    "a number": (lambda z: z.sum().item(), TypeError, "loss must be a Tensor"),
    "detached": (lambda z: z.detach().sum(), ValueError, "loss must carry a graph"),
    "another graph": (
        lambda z: torch.ones((), requires_grad=True).exp(),
        ValueError,
        "loss must depend on the model's parameters",
    ),
}


@pytest.mark.parametrize("step", [None, 1e-3])
@pytest.mark.parametrize("name", LOSSES)
def test_bad_losses(name, step):
    loss_fn, error, message = LOSSES[name]
    made = build("mlp")
    problem = ModelLoss(
        made.model, lambda output, _: loss_fn(output), made.inputs, None, made.problem().parameters
    )
    before = everything(made.model)
    with pytest.raises(error, match=message):
        FiniteDifference(problem, seed=0, backend="auto", step=step).samples(0, 1)
    assert_same(everything(made.model), before)


def test_parameters_that_are_not_finite():
    made = build("conv_with_frozen_and_unused_parameters")
    made.model.unused.data.fill_(torch.inf)
    with pytest.raises(ValueError, match="parameters must be finite, got a norm of inf"):
        made.difference().samples(0, 1)


@pytest.mark.parametrize("step", [0.0, -1e-3, float("nan"), "small", True])
def test_bad_steps(step):
    with pytest.raises((TypeError, ValueError), match="step must be"):
        build("mlp").difference(step=step)

"""Kinds of model, each a ``Problem``: ``GENERAL`` maps names to functions that make them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tests.problems.modules import TiedEmbedding, perceptron_around
from tests.problems.once_differentiable import PlainAttention
from tests.problems.problem import Problem, Values, classify, leaf, rand

GENERAL: dict[str, Callable[[], Problem]] = {}


def general(make: Callable[[], Problem]) -> Callable[[], Problem]:
    GENERAL[make.__name__] = make
    return make


def of_module(
    module: nn.Module,
    inputs: Tensor,
    criterion: Callable[[Tensor], Tensor] = classify,
    *,
    twin: nn.Module | None = None,
) -> Problem:
    """twin: a module with the same parameters, for ``Problem.twin``."""

    def loss_of(network: nn.Module) -> Callable[[Values], Tensor]:
        return lambda p: criterion(functional_call(network, dict(p), (inputs,)))

    params = dict(module.double().named_parameters())
    return Problem(params, loss_of(module), twin and loss_of(twin.double()))


def mlp(activation: Callable[[], nn.Module], *, bias: bool = True) -> Problem:
    layers = nn.Sequential(
        nn.Linear(4, 6, bias=bias), activation(), nn.Linear(6, 5, bias=bias), activation()
    )
    return of_module(nn.Sequential(*layers, nn.Linear(5, 3, bias=bias)), rand(7, 4))


@general
def mlp_relu():
    return mlp(nn.ReLU)


@general
def mlp_tanh():
    return mlp(nn.Tanh)


@general
def mlp_gelu():
    return mlp(nn.GELU)


@general
def mlp_softplus_without_bias():
    return mlp(nn.Softplus, bias=False)


@general
def mlp_prelu_with_learned_slopes():
    return mlp(nn.PReLU)


@general
def regression():
    target = rand(7, 2)
    module = nn.Sequential(nn.Linear(4, 5), nn.SiLU(), nn.Linear(5, 2))
    return of_module(module, rand(7, 4), lambda out: F.mse_loss(out, target))


@general
def negative_curvature():
    """Every probe and every diagonal entry is negative."""
    return Problem({"w": leaf(5)}, lambda p: -(p["w"] ** 2).sum() - (p["w"] ** 4).sum())


@general
def saddle_with_trace_zero():
    return Problem({"u": leaf(6), "w": leaf(6)}, lambda p: (p["u"] * p["w"]).sum())


@general
def linear_in_the_parameters():
    x = rand(3, 4)
    return Problem({"w": leaf(3, 4), "b": leaf(4)}, lambda p: (p["w"] * x).sum() + p["b"].sum())


@general
def linear_in_one_parameter():
    return Problem({"w": leaf(4), "b": leaf(4)}, lambda p: p["w"].pow(3).sum() + p["b"].sum())


@general
def with_an_unused_parameter():
    return Problem(
        {"unused": leaf(3), "w": leaf(4), "too": leaf(2, 2)}, lambda p: p["w"].pow(3).sum()
    )


@general
def with_frozen_parameters():
    x = rand(5, 3)
    return Problem(
        {"a": rand(3), "w": leaf(3), "c": rand(3), "v": leaf(3), "e": rand(1)},
        lambda p: ((x * p["a"] * p["w"]).tanh() * p["c"] * p["v"] + p["e"]).square().mean(),
    )


@general
def a_single_number():
    return Problem({"w": leaf()}, lambda p: p["w"].exp())


@general
def an_empty_parameter():
    return Problem(
        {"w": leaf(3), "none": leaf(0)}, lambda p: p["w"].exp().sum() + p["none"].square().sum()
    )


@general
def a_strided_parameter():
    w = rand(4, 6).t()[1::2].requires_grad_()
    return Problem({"w": w}, lambda p: (p["w"] @ p["w"].t()).tanh().sum())


@general
def loss_with_sizes_of_one():
    return Problem({"w": leaf(4)}, lambda p: p["w"].pow(4).sum().view(1, 1))


@general
def conv2d_net():
    module = nn.Sequential(
        nn.Conv2d(1, 2, 3), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)
    )
    return of_module(module, rand(4, 1, 6, 6))


@general
def conv1d_net():
    module = nn.Sequential(nn.Conv1d(2, 3, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(15, 2))
    return of_module(module, rand(4, 2, 5))


class PlainNorm(nn.Module):
    """Layer norm (dim -1) or batch norm in train mode (dim 0), in single operations."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        centred = x - x.mean(self.dim, keepdim=True)
        variance = centred.square().mean(self.dim, keepdim=True)
        return centred / (variance + 1e-5).sqrt() * self.weight + self.bias


def normalised(norm: nn.Module, twin: nn.Module | None = None) -> Problem:
    module = perceptron_around(norm).eval()
    return of_module(module, rand(6, 4), twin=twin and perceptron_around(twin))


@general
def layer_norm():
    return normalised(nn.LayerNorm(5), PlainNorm(5, dim=-1))


@general
def batch_norm_in_eval_mode():
    norm = nn.BatchNorm1d(5)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    return normalised(norm)


@general
def batch_norm_of_the_batch():
    return normalised(nn.BatchNorm1d(5, track_running_stats=False), PlainNorm(5, dim=0))


@general
def embedding_tied_to_the_output():
    return of_module(TiedEmbedding(6), torch.tensor([[0, 3, 5, 1], [2, 2, 4, 0]]))


@general
def embedding_with_sparse_gradients():
    def network(*, sparse: bool) -> nn.Module:
        return nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Tanh(), nn.Linear(3, 2))

    tokens = torch.tensor([0, 3, 3, 1])
    return of_module(network(sparse=True), tokens, twin=network(sparse=False))


@general
def attention():
    return of_module(PlainAttention(), rand(2, 5, 4))


@general
def multihead_attention_module():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(4, 2, batch_first=True)
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return self.out(x + self.attention(x, x, x)[0])

    return of_module(Block(), rand(2, 3, 4))


@general
def lstm_cell_unrolled():
    class Unrolled(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = nn.LSTMCell(2, 3)
            self.out = nn.Linear(3, 2)

        def forward(self, x):
            state = None
            for step in x:
                state = self.cell(step, state)
            return self.out(state[0])

    return of_module(Unrolled(), rand(3, 4, 2))


@general
def einsums():
    x = rand(5, 3)
    return Problem(
        {"b": leaf(2, 3, 3), "e": leaf(3, 2)},
        lambda p: (
            torch.einsum("ni,oij,nj->no", x, p["b"], x).tanh().square().mean()
            + torch.einsum("ni,ij,nk->jk", x, p["e"], x).tanh().sum()
        ),
    )


class CubeTwiceDifferentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


@general
def custom_function():
    x = rand(5, 3)

    def loss_with(cube):
        return lambda p: classify(cube(F.linear(x, p["w"], p["b"])))

    return Problem(
        {"w": leaf(4, 3), "b": leaf(4)},
        loss_with(CubeTwiceDifferentiable.apply),
        twin=loss_with(lambda z: z**3),
    )


@general
def a_parametrized_weight():
    """Not torch's weight_norm, whose fused kernel has a wrong second derivative (2.13: an asymmetric Hessian)."""

    class Normalise(nn.Module):
        def forward(self, v):
            return v / v.norm(dim=1, keepdim=True)

    layer = nn.Linear(4, 3).double()
    nn.utils.parametrize.register_parametrization(layer, "weight", Normalise())
    return of_module(nn.Sequential(layer, nn.Tanh(), nn.Linear(3, 2)), rand(5, 4))


@general
def gradient_penalty():
    """The loss holds a gradient itself, so its Hessian is a third derivative of the network."""
    x = rand(5, 3)

    def network(p, inputs):
        return F.linear(F.linear(inputs, p["w"], p["b"]).tanh(), p["v"])

    def loss(p):
        inputs = x.clone().requires_grad_()
        (slope,) = torch.autograd.grad(network(p, inputs).sum(), inputs, create_graph=True)
        return network(p, x).square().mean() + (slope.norm(dim=1) - 1).square().mean()

    def twin(p):
        slope = torch.func.grad(lambda inputs: network(p, inputs).sum())(x)
        return network(p, x).square().mean() + (slope.norm(dim=1) - 1).square().mean()

    return Problem({"w": leaf(4, 3), "b": leaf(4), "v": leaf(1, 4)}, loss, twin=twin)

"""Small losses with a dense Hessian: what the estimator must get right, one function a problem, in float64.

``GENERAL`` holds kinds of model; ``LINEAR`` every way in which a linear layer can stand in a graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint

Values = Mapping[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A loss as a function of named tensors.

    ``params``: leaves at the point where the Hessian is taken; frozen ones do not require a gradient.
    ``twin``: the same function from operations that torch.func can differentiate, where ``loss`` has others.
    """

    params: dict[str, Tensor]
    loss: Callable[[Values], Tensor]
    twin: Callable[[Values], Tensor] | None = None

    @property
    def live(self) -> dict[str, Tensor]:
        return {name: p for name, p in self.params.items() if p.requires_grad}


def dense_hessian(problem: Problem) -> Tensor:
    """[n, n] in the elements of ``problem.live``, in order, by torch.func.hessian."""
    live = {name: p.detach() for name, p in problem.live.items()}
    function = problem.twin or problem.loss

    def of_flat(flat: Tensor) -> Tensor:
        pieces = flat.split([p.numel() for p in live.values()])
        moved = {
            name: piece.view(p.shape) for (name, p), piece in zip(live.items(), pieces, strict=True)
        }
        frozen = {name: p for name, p in problem.params.items() if name not in live}
        return function({**frozen, **moved}).reshape(())

    flat = torch.cat([p.reshape(-1) for p in live.values()])
    hessian = torch.func.hessian(of_flat)(flat).detach()
    # torch.func's own mistakes show here (2.13: layer_norm, batch_norm in train mode); those problems have a twin.
    torch.testing.assert_close(hessian, hessian.t(), rtol=1e-9, atol=1e-12)
    return hessian


GENERAL: dict[str, Callable[[], Problem]] = {}
LINEAR: dict[str, Callable[[], Problem]] = {}


def general(make: Callable[[], Problem]) -> Callable[[], Problem]:
    GENERAL[make.__name__] = make
    return make


def linear(make: Callable[[], Problem]) -> Callable[[], Problem]:
    LINEAR[make.__name__] = make
    return make


def build(make: Callable[[], Problem]) -> Problem:
    """The same numbers every time, without touching the global random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


def rand(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def leaf(*shape: int) -> Tensor:
    return rand(*shape).requires_grad_()


def classify(outputs: Tensor) -> Tensor:
    """Cross-entropy of [..., classes] against fixed labels."""
    flat = outputs.reshape(-1, outputs.shape[-1])
    return F.cross_entropy(flat, torch.arange(len(flat)) % flat.shape[1])


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


# Kinds of model.


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
    def network(norm: nn.Module) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3))

    return of_module(network(norm).eval(), rand(6, 4), twin=twin and network(twin))


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
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(6, 4)
            self.mix = nn.Linear(4, 4)
            self.out = nn.Linear(4, 6)
            self.out.weight = self.embed.weight

        def forward(self, tokens):
            return self.out(self.mix(self.embed(tokens)).tanh())

    return of_module(Tied(), torch.tensor([[0, 3, 5, 1], [2, 2, 4, 0]]))


@general
def attention():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            q, k, v = self.qkv(x).view(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4)
            with sdpa_kernel(SDPBackend.MATH):  # the fused kernel has no second derivative
                mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(mixed.transpose(1, 2).reshape(2, 5, 4))

    return of_module(Attention(), rand(2, 5, 4))


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


# Linear layers. x: inputs, w: weights [out, in], b: biases; the loss is classify or a square of something.


def two_layers(first, x=None, **more):
    """first(p, x) -> hidden [n, 5]; then tanh and a plain layer."""
    x = rand(6, 4) if x is None else x
    params = {"w": leaf(5, 4), "b": leaf(5), **more, "v": leaf(3, 5), "c": leaf(3)}
    return Problem(params, lambda p: classify(F.linear(first(p, x).tanh(), p["v"], p["c"])))


@linear
def inputs_2d():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"]))


@linear
def inputs_1d():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"]), rand(4))


@linear
def inputs_3d():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"]), rand(2, 3, 4))


@linear
def inputs_3d_without_bias():
    return two_layers(lambda p, x: F.linear(x, p["w"]), rand(2, 3, 4))


@linear
def inputs_4d_not_contiguous():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"]), rand(2, 4, 3, 2).transpose(1, 3))


@linear
def inputs_that_are_expanded():
    return two_layers(lambda p, x: F.linear(x.expand(6, 4), p["w"], p["b"]), rand(1, 4))


@linear
def without_bias():
    return two_layers(lambda p, x: F.linear(x, p["w"]))


@linear
def batch_of_one():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"]), rand(1, 4))


@linear
def batch_of_none():
    x = rand(0, 3)
    return Problem(
        {"w": leaf(2, 3), "b": leaf(2)},
        lambda p: F.linear(x, p["w"], p["b"]).square().sum() + p["b"].exp().sum(),
    )


@linear
def one_output():
    x, y = rand(6, 4), rand(6, 1)
    return Problem(
        {"w": leaf(1, 4), "b": leaf(1)},
        lambda p: F.binary_cross_entropy_with_logits(F.linear(x, p["w"], p["b"]), y.sigmoid()),
    )


@linear
def one_input():
    x = rand(6, 1)
    return Problem(
        {"w": leaf(3, 1), "b": leaf(3)}, lambda p: classify(F.linear(x, p["w"], p["b"]).tanh())
    )


@linear
def one_row_one_output_is_the_loss():
    x = rand(1, 4)
    return Problem(
        {"u": leaf(4, 4), "w": leaf(1, 4)}, lambda p: F.linear(F.linear(x, p["u"]).tanh(), p["w"])
    )


@linear
def a_bias_that_broadcasts():
    """One number added to every output, and a bias for every row."""
    return two_layers(
        lambda p, x: torch.addmm(p["one"], x, p["w"].t()).tanh() + F.linear(x, p["w"], p["b"]),
        one=leaf(1),
    )


@linear
def a_bias_with_two_dimensions():
    return two_layers(lambda p, x: torch.addmm(p["rows"], x, p["w"].t()), rows=leaf(6, 5))


@linear
def a_bias_with_one_row():
    return two_layers(lambda p, x: torch.addmm(p["row"], x, p["w"].t()), row=leaf(1, 5))


@linear
def a_bias_that_is_computed():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"].exp()))


@linear
def a_bias_used_elsewhere():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"]) * p["b"])


@linear
def a_bias_used_by_two_layers():
    return two_layers(
        lambda p, x: F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["u"], p["b"]), u=leaf(5, 5)
    )


@linear
def a_bias_with_a_computed_weight():
    return two_layers(lambda p, x: F.linear(x, p["w"].tanh(), p["b"]))


@linear
def a_layer_used_twice():
    x = rand(6, 4)
    return Problem(
        {"w": leaf(4, 4), "b": leaf(4)},
        lambda p: classify(F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["w"], p["b"])),
    )


@linear
def a_weight_used_twice_with_two_biases():
    x = rand(6, 4)
    return Problem(
        {"w": leaf(4, 4), "b": leaf(4), "c": leaf(4)},
        lambda p: classify(F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["w"], p["c"])),
    )


@linear
def a_layer_used_in_a_loop():
    x = rand(5, 3)

    def loss(p):
        h = x
        for _ in range(4):
            h = torch.tanh(F.linear(h, p["w"], p["b"]) + x @ p["u"])
        return classify(h)

    return Problem({"w": leaf(3, 3), "b": leaf(3), "u": leaf(3, 3)}, loss)


@linear
def a_weight_used_both_ways():
    """A tied auto-encoder: x W, then back through W transposed."""
    x = rand(6, 4)
    return Problem(
        {"w": leaf(4, 3), "b": leaf(3), "c": leaf(4)},
        lambda p: (
            (F.linear((x @ p["w"] + p["b"]).tanh(), p["w"], p["c"]) - x).square().mean()
        ),
    )


@linear
def one_transpose_used_twice():
    x = rand(6, 4)

    def loss(p):
        w = p["w"].t()
        return classify((x @ w).tanh() @ p["v"] + x.exp() @ w)

    return Problem({"w": leaf(4, 4), "v": leaf(4, 4)}, loss)


@linear
def plain_products():
    x = rand(6, 4)
    return Problem(
        {"w": leaf(4, 5), "v": leaf(5, 3)}, lambda p: classify((x @ p["w"]).tanh() @ p["v"])
    )


@linear
def other_transposes():
    return two_layers(
        lambda p, x: x @ p["w"].T + (x @ p["w"].mT).tanh() + x @ p["w"].transpose(0, 1) + p["b"]
    )


@linear
def a_weight_on_the_left():
    x = rand(4, 6)
    return Problem(
        {"w": leaf(5, 4), "v": leaf(5, 3)},
        lambda p: classify((p["w"] @ x).tanh().t() @ p["v"]) + (p["v"].t() @ p["w"]).tanh().sum(),
    )


@linear
def a_weight_times_itself():
    return Problem({"w": leaf(4, 4)}, lambda p: torch.mm(p["w"], p["w"]).tanh().sum())


@linear
def a_product_of_parameters():
    """A factored layer: the input of the second product is a parameter."""
    x = rand(6, 4)
    return Problem(
        {"u": leaf(4, 2), "w": leaf(2, 5), "v": leaf(5, 3)},
        lambda p: classify((x @ torch.mm(p["u"], p["w"])).tanh() @ p["v"]),
    )


@linear
def an_input_that_is_a_parameter():
    """Prompt tuning: what goes in is learned as well."""
    return Problem(
        {"x": leaf(6, 4), "w": leaf(5, 4), "b": leaf(5), "v": leaf(3, 5)},
        lambda p: classify(F.linear(F.linear(p["x"], p["w"], p["b"]).tanh(), p["v"])),
    )


@linear
def an_input_that_requires_grad():
    x = leaf(6, 4)
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"]), x)


@linear
def an_input_made_from_one_that_requires_grad():
    x = leaf(6, 4)
    return two_layers(lambda p, x: F.linear(x.sin(), p["w"], p["b"]), x)


@linear
def an_input_that_is_a_transposed_parameter():
    return Problem(
        {"x": leaf(4, 6), "w": leaf(3, 4)}, lambda p: classify(F.linear(p["x"].t(), p["w"]).tanh())
    )


@linear
def a_frozen_weight():
    return two_layers(lambda p, x: F.linear(x, p["u"], p["b"]) + x @ p["w"].t(), u=rand(5, 4))


@linear
def a_frozen_bias():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["d"]) + p["b"], d=rand(5))


@linear
def a_frozen_first_layer():
    x = rand(6, 4)
    return Problem(
        {"w": rand(5, 4), "b": rand(5), "v": leaf(3, 5), "c": leaf(3)},
        lambda p: classify(F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["v"], p["c"])),
    )


@linear
def a_frozen_last_layer():
    x = rand(6, 4)
    return Problem(
        {"w": leaf(5, 4), "b": leaf(5), "v": rand(3, 5), "c": rand(3)},
        lambda p: classify(F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["v"], p["c"])),
    )


@linear
def only_biases():
    x, w, v = rand(6, 4), rand(5, 4), rand(3, 5)
    return Problem(
        {"b": leaf(5), "c": leaf(3)},
        lambda p: classify(F.linear(F.linear(x, w, p["b"]).tanh(), v, p["c"])),
    )


@linear
def an_output_that_is_unused():
    def first(p, x):
        z = F.linear(x, p["w"], p["b"])
        F.linear(z, p["u"])
        return z

    return two_layers(first, u=leaf(2, 5))


@linear
def an_output_that_is_detached():
    return two_layers(
        lambda p, x: F.linear(x, p["w"], p["b"]) + F.linear(x, p["u"]).detach(), u=leaf(5, 4)
    )


@linear
def an_output_times_zero():
    return two_layers(
        lambda p, x: F.linear(x, p["w"], p["b"]) + 0 * F.linear(x, p["u"]), u=leaf(5, 4)
    )


@linear
def a_part_of_an_output():
    return two_layers(lambda p, x: F.linear(x, p["w"], p["b"])[:, [0, 0, 2, 2, 2]])


@linear
def query_key_value_from_one_input():
    def first(p, x):
        h = x.sin() * p["g"]
        q, k, v = (F.linear(h, p[name]) for name in ("q", "k", "value"))
        return (q @ k.t()).softmax(-1) @ v + F.linear(h, p["w"], p["b"])

    return two_layers(first, q=leaf(5, 4), k=leaf(5, 4), value=leaf(5, 4), g=leaf(4))


@linear
def residual():
    x = rand(6, 4)

    def loss(p):
        h = F.linear(x, p["w"], p["b"])
        h = h + F.linear(h.tanh(), p["u"], p["b"])
        return classify(h + F.linear(h.tanh(), p["v"]))

    return Problem({"w": leaf(4, 4), "b": leaf(4), "u": leaf(4, 4), "v": leaf(4, 4)}, loss)


@linear
def an_activation_used_twice():
    def first(p, x):
        h = F.linear(x, p["w"], p["b"])
        return h * F.linear(h.sigmoid(), p["u"]) + h

    return two_layers(first, u=leaf(5, 5))


@linear
def layers_without_an_activation_between():
    x = rand(6, 4)

    def loss(p):
        h = F.linear(F.linear(x, p["w"], p["b"]), p["u"], p["c"])
        return classify(F.linear(h, p["v"]))

    return Problem(
        {"w": leaf(5, 4), "b": leaf(5), "u": leaf(4, 5), "c": leaf(4), "v": leaf(3, 4)}, loss
    )


@linear
def addmm_with_factors():
    return two_layers(
        lambda p, x: (
            torch.addmm(p["b"], x, p["w"].t(), alpha=2.5)
            + torch.addmm(p["b"], x, p["w"].t(), beta=0.5).tanh()
            + torch.addmm(p["b"], x, p["w"].t(), beta=0)
        )
    )


@linear
def addmm_in_place():
    return two_layers(lambda p, x: (x.sum(1, keepdim=True) * p["b"]).addmm_(x, p["w"].t()))


@linear
def a_weight_in_a_penalty():
    x = rand(6, 4)

    def loss(p):
        decay = sum(q.square().sum() for q in p.values())
        return classify(F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["v"])) + 0.05 * decay

    return Problem({"w": leaf(5, 4), "b": leaf(5), "v": leaf(3, 5)}, loss)


@linear
def one_weight_in_a_penalty():
    x = rand(6, 4)
    return Problem(
        {"w": leaf(5, 4), "b": leaf(5), "v": leaf(3, 5)},
        lambda p: (
            classify(F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["v"])) + p["w"].exp().mean()
        ),
    )


@linear
def a_penalty_alone():
    return Problem({"w": leaf(5, 4)}, lambda p: p["w"].pow(4).sum())


@linear
def a_slice_of_a_weight():
    return two_layers(
        lambda p, x: F.linear(x, p["u"][:5], p["b"]) + F.linear(x, p["u"][3:]) @ p["w"].t(),
        u=leaf(7, 4),
    )


@linear
def an_activation_in_place():
    x = rand(6, 4)

    def loss(p):
        h = F.relu_(F.linear(x, p["w"], p["b"]))
        return classify(F.linear(F.silu(h, inplace=False), p["v"]))

    return Problem({"w": leaf(5, 4), "b": leaf(5), "v": leaf(3, 5)}, loss)


@linear
def a_loss_linear_in_a_layer():
    """No curvature in v alone, none at all in c, yet v and w meet in the Hessian."""
    x = rand(6, 4)
    return Problem(
        {"w": leaf(5, 4), "v": leaf(3, 5), "c": leaf(3)},
        lambda p: F.linear(F.linear(x, p["w"]).tanh(), p["v"], p["c"]).sum(),
    )


@linear
def layers_in_parallel_on_one_loss():
    x, y = rand(6, 4), rand(3, 2)
    return Problem(
        {"w": leaf(3, 4), "u": leaf(3, 2)},
        lambda p: classify(F.linear(x, p["w"])) + classify(F.linear(y, p["u"])),
    )


@linear
def batched_products():
    x = rand(2, 3, 4)
    return Problem(
        {"w": leaf(2, 4, 5), "v": leaf(5, 3)},
        lambda p: classify(torch.bmm(x, p["w"]).tanh() @ p["v"]),
    )


@linear
def matrix_times_vector():
    x = rand(6, 4)
    return Problem(
        {"w": leaf(4, 5), "v": leaf(5), "b": leaf(6)},
        lambda p: torch.addmv(p["b"], (x @ p["w"]).tanh(), p["v"]).square().mean(),
    )


@linear
def recomputed_activations():
    """Checkpointing: the graph holds no activations until it is walked."""
    x = rand(6, 4).requires_grad_()

    def block(h, w, b):
        return F.linear(h, w, b).tanh()

    def loss_with(run):
        def loss(p):
            h = run(block, x, p["w"], p["b"])
            h = run(block, h, p["u"], p["b"])
            return classify(F.linear(h, p["v"]))

        return loss

    return Problem(
        {"w": leaf(5, 4), "b": leaf(5), "u": leaf(5, 5), "v": leaf(3, 5)},
        loss_with(lambda f, *args: checkpoint(f, *args, use_reentrant=False)),
        twin=loss_with(lambda f, *args: f(*args)),
    )


@linear
def saved_tensors_moved_away():
    """Hooks on saved tensors, as for offloading to the host."""
    x = rand(6, 4)

    def network(p):
        return classify(F.linear(F.linear(x, p["w"], p["b"]).tanh(), p["v"]))

    def loss(p):
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.clone(), lambda t: t):
            return network(p)

    return Problem({"w": leaf(5, 4), "b": leaf(5), "v": leaf(3, 5)}, loss, twin=network)

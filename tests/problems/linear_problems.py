"""Every way in which a linear layer can stand in a graph. ``LINEAR``: name -> function that makes the ``Problem``.

x: inputs; w, u, v: weights; b, c: biases.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint

from tests.problems.problem import Problem, classify, leaf, rand

LINEAR: dict[str, Callable[[], Problem]] = {}


def linear(make: Callable[[], Problem]) -> Callable[[], Problem]:
    LINEAR[make.__name__] = make
    return make


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
        lambda p: (F.linear((x @ p["w"] + p["b"]).tanh(), p["w"], p["c"]) - x).square().mean(),
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
def addmm_with_a_factor_on_the_product():
    return two_layers(lambda p, x: torch.addmm(p["b"], x, p["w"].t(), alpha=2.5))


@linear
def addmm_with_a_factor_on_the_bias():
    return two_layers(lambda p, x: torch.addmm(p["b"], x, p["w"].t(), beta=0.5))


@linear
def addmm_without_its_bias():
    return two_layers(lambda p, x: torch.addmm(p["b"], x, p["w"].t(), beta=0))


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

"""The share of smooth activations in the exact Hessian of a chain: every second derivative of theirs, without sampling.

A unit a = s(z) of example n adds c (dz/dtheta)(dz/dtheta)' to the Hessian, with c = s''(z) dL/da: trace c ||dz/dtheta||^2.
For the parameters of the unit's own layer that norm is ||a_below||^2 + 1; one layer further down it is a sum over the units
between, with squared weights and slopes, so that one matrix product serves all units of a layer at once. Only from two layers
down on does each unit of a layer need a cotangent of its own, a column.

Source: docs/concepts/estimators.md; the sum over second derivatives is the Gauss-Newton decomposition, Schraudolph 2002,
eq. 11, taken at every activation instead of at the output alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv.estimators.graph.derivatives import second_derivative
from metacurv.estimators.mlp.recognise import Chain
from metacurv.estimators.mlp.space import ChainSpace


def bend_columns(chain: Chain) -> int:
    """Counts the columns that ``bend_parts`` pulls back."""
    return sum(
        layer.a.shape[1]
        for index, layer in enumerate(chain.layers)
        if layer.is_smooth and index + 3 < len(chain.layers)
    )


@torch.no_grad()
def bend_parts(space: ChainSpace, loss: Tensor) -> Tensor:
    """Returns the share of all smooth activations, float64 [parameters]; ``loss`` is the loss of the chain."""
    table = torch.zeros(1, 2 * len(space.chain.layers), dtype=torch.float64, device=space.device)

    def add(index: int, squares: Tensor) -> None:
        of_samples = squares.sum(1, dtype=torch.float64)
        norms = space.inputs[index].square().sum(1, dtype=torch.float64)
        table[0, 2 * index] += of_samples @ norms
        table[0, 2 * index + 1] += of_samples.sum()

    _add_bends(space, loss, add)
    return space.by_parameter(table)[0]


@torch.no_grad()
def bend_diagonals(space: ChainSpace, loss: Tensor) -> dict[int, Tensor]:
    """Returns the share of all smooth activations in each parameter's diagonal, of its shape, by the parameter's index."""
    found: dict[int, Tensor] = {}

    def add(index: int, squares: Tensor) -> None:
        layer = space.chain.layers[index]
        of_weight = squares.t() @ space.inputs[index].square()
        products = (of_weight if layer.is_transposed else of_weight.t(), squares.sum(0))
        for parameter, product in zip((layer.weight, layer.bias), products, strict=True):
            if parameter >= 0:
                found[parameter] = found[parameter] + product if parameter in found else product

    _add_bends(space, loss, add)
    return found


# Adds sum over n of (a_n^2, 1) squares_ni to the layer of an index; squares: [N, I], signed.
Add = Callable[[int, Tensor], None]


def _add_bends(space: ChainSpace, loss: Tensor, add: Add) -> None:
    chain = space.chain
    slopes = [layer.slope() for layer in chain.layers[:-1]]
    gradient = chain.gradient(loss)
    carried: Tensor | None = None  # sum of c (dz/dz_below)^2 from the layer above
    for index, slope in enumerate(slopes):
        layer, below = chain.layers[index : index + 2]
        matrix = layer.matrix
        assert matrix is not None
        at_a = gradient @ matrix  # dL/da
        total = None
        if carried is not None:
            total = (carried @ matrix.square()) * slope.square()
        carried = None
        if layer.is_smooth:
            carried = second_derivative(layer.below, at_a, GradientEdge(below.node, 0))
        if carried is not None:
            total = carried if total is None else total + carried
            _add_columns(space, index, carried, slopes, add)
        if total is not None:
            add(index + 1, total)
        gradient = at_a * slope


def _add_columns(
    space: ChainSpace, index: int, c: Tensor, slopes: Sequence[Tensor], add: Add
) -> None:
    """Adds the share of the units below layer ``index`` in layers ``index + 3`` and on; c: [N, units]."""
    layers = space.chain.layers
    if index + 3 >= len(layers):
        return
    matrix = layers[index + 1].matrix
    assert matrix is not None
    at_once = max(1, space.at_once // 2)  # two results and their squares at a time
    for start in range(0, c.shape[1], at_once):
        units = slice(start, start + at_once)
        u = matrix[units].unsqueeze(1) * slopes[index + 1]  # [R, N, units of the layer below]
        factors = c[:, units].t().unsqueeze(2)
        for below in range(index + 2, len(layers) - 1):
            weight = layers[below].matrix
            assert weight is not None
            u = (u @ weight).mul_(slopes[below])
            add(below + 1, u.square().mul_(factors).sum(0))

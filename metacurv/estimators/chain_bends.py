"""What smooth activations add to the exact Hessian of a chain: every one of their second derivatives, without sampling.

A unit a = s(z) of sample n adds c (dz/dtheta)(dz/dtheta)' to the Hessian, with c = s''(z) dL/da: trace c ||dz/dtheta||^2.
For the parameters of the unit's own layer that norm is ||a_below||^2 + 1; one layer further down it is a sum over the units
between, with squared weights and slopes, so that one matrix product serves all units of a layer at once. Only from two layers
down on does each unit of a layer need a cotangent of its own, a column.

Source: docs/estimators.md; the sum over second derivatives is the Gauss-Newton decomposition, Schraudolph 2002, eq. 11, taken
at every activation instead of at the output alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv.estimators.chain_graph import Chain
from metacurv.estimators.chain_space import ChainSpace


def bend_columns(chain: Chain) -> int:
    """Columns that ``bend_parts`` pulls back."""
    return sum(
        layer.a.shape[1]
        for index, layer in enumerate(chain.layers)
        if chain.is_smooth(index) and index + 3 < len(chain.layers)
    )


@torch.no_grad()
def bend_parts(space: ChainSpace, loss: Tensor) -> Tensor:
    """The share of all smooth activations, float64 [parameters]; ``loss``: of the chain."""
    layers = space.chain.layers
    table = torch.zeros(1, 2 * len(layers), dtype=torch.float64, device=space.device)
    gradient = space.chain.gradient(loss)
    carried: Tensor | None = None  # sum of c (dz/dz_below)^2 from the layer above
    for index, layer in enumerate(layers[:-1]):
        assert layer.matrix is not None
        slope = _slope(space, index)
        at_a = gradient @ layer.matrix  # dL/da
        total = None
        if carried is not None:
            total = (carried @ layer.matrix.square()) * slope.square()
        carried = None
        c = space.chain.second_derivative(index, at_a)
        if c is not None:
            carried = c
            total = c if total is None else total + c
            _add_columns(space, index, c, table)
        if total is not None:
            _add(space, index + 1, total.unsqueeze(0), table)
        gradient = at_a * slope
    return space.by_parameter(table)[0]


def _add_columns(space: ChainSpace, index: int, c: Tensor, table: Tensor) -> None:
    """The share of the units below layer ``index`` in layers ``index + 3`` and on; c: [N, units]."""
    layers = space.chain.layers
    if index + 3 >= len(layers):
        return
    matrix, slope = layers[index + 1].matrix, _slope(space, index + 1)
    assert matrix is not None
    for start in range(0, c.shape[1], space.at_once):
        units = slice(start, start + space.at_once)
        u = matrix[units].unsqueeze(1) * slope  # [R, N, units of the layer below]
        factors = c[:, units].t().unsqueeze(2)
        for below in range(index + 2, len(layers) - 1):
            weight = layers[below].matrix
            assert weight is not None
            u = (u @ weight).mul_(_slope(space, below))
            _add(space, below + 1, u.square().mul_(factors), table)


def _add(space: ChainSpace, index: int, squares: Tensor, table: Tensor) -> None:
    """Adds sum over r, n, i of (||a_n||^2, 1) squares_rni to layer ``index``; squares: [R, N, I], signed."""
    # Products with ones: squares of either sign in a form made for u . w.
    sums = space.run.row_products(space.inputs[index], squares, torch.ones_like(squares))
    table[0, 2 * index : 2 * index + 2] += sums.sum(0)


def _slope(space: ChainSpace, index: int) -> Tensor:
    slope = space.slopes[index]
    return slope.sign() if space.rectified[index] else slope

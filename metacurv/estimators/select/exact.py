"""The exact trace in activation space: every column of the loss's factor is pulled back once.

    tr J_theta' H_z J_theta = sum over columns c of sum_n <grad from u_nc, grad from w_nc>,   sum_c u_c w_c' = H_out

It is exact for the Gauss-Newton matrix of any model, and for the Hessian of one that is linear in pieces, where both are the
same almost everywhere. A column of all examples at once costs one backward pass to the layers; where examples interact, or a
parameter's gradient is not to be had example by example, each example's columns go alone. The Hessian of a chain of layers with
smooth activations has their share added (``chain_bends``).

Source: Dangel, Harmeling, Hennig 2020, "Modular block-diagonal curvature approximations", section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv.estimators.activation.space import ActivationSpace
from metacurv.estimators.mlp.second_derivatives import bend_parts
from metacurv.estimators.mlp.space import ChainSpace


def exact_parts(space: ActivationSpace | ChainSpace, loss: Tensor, kind: str) -> Tensor:
    """Returns each parameter's trace, float64 [parameters], from as many columns at once as the space takes.

    ``loss`` is the loss that ``space`` was made from. ``kind`` is "hessian" or "ggn".
    """
    total = torch.zeros(len(space.parameters), dtype=torch.float64, device=space.device)
    for start in range(0, space.column_count, space.at_once):
        total += space.columns(start, min(start + space.at_once, space.column_count))
    if kind == "hessian" and isinstance(space, ChainSpace) and space.chain.has_smooth:
        total += bend_parts(space, loss)
    return total

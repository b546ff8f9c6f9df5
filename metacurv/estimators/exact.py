"""The exact trace in activation space: every column of the loss's factor is pulled back once.

    tr J_theta' H_z J_theta = sum over columns c of sum_n <grad from u_nc, grad from w_nc>,   sum_c u_c w_c' = H_out

Exact for the Gauss-Newton matrix of any model, and for the Hessian of one that is linear in pieces, where both are the same
almost everywhere. A column of all samples at once costs one backward pass to the layers; where samples interact, or a
parameter's gradient is not to be had sample by sample, each sample's columns go alone.

Source: Dangel, Harmeling, Hennig 2020, "Modular block-diagonal curvature approximations", section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv.estimators.activation_space import ActivationSpace


def exact_parts(space: ActivationSpace) -> Tensor:
    """Each parameter's trace, float64 [parameters]; as many columns at once as the space takes."""
    factor = space.factor
    total = torch.zeros(len(space.parameters), dtype=torch.float64, device=space.device)
    for start in range(0, factor.columns_per_sample, space.at_once):
        u, w = factor.columns(start, min(start + space.at_once, factor.columns_per_sample))
        total += space.products(u, u if factor.is_definite else w, {}, {}).sum(0)
    return total

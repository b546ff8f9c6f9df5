"""Derivatives of operations from their nodes: a node of autograd is the map from the cotangent of its output to its inputs'."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv.estimators.graph.torch_private import output_of, saved


def pulled_back(node: Any, cotangent: Tensor, position: int = 0) -> Tensor:
    """Returns the cotangent of one input, given that of the only output."""
    made = node(cotangent)
    found: Tensor = made if isinstance(made, Tensor) else made[position]
    return found


def slope(node: Any, position: int = 0) -> Tensor:
    """Returns s'(z) of an elementwise function, detached."""
    like = output_of(node)
    ones = torch.ones(tuple(like.shape), dtype=like.dtype, device=like.device)
    return pulled_back(node, ones, position).detach()


def second_derivative(node: Any, cotangent: Tensor, below: GradientEdge) -> Tensor | None:
    """Returns c = s''(z) dl/da of a = s(z); None where it is 0."""
    name = node.name()
    if name == "TanhBackward0":  # s' = 1 - a^2, s'' = -2 a s'
        a = saved(node, "result").detach()
        return torch.addcmul(a, a.square(), a, value=-1).mul_(cotangent).mul_(-2)
    if name == "SigmoidBackward0":  # s' = a (1 - a), s'' = (1 - 2 a) s'
        a = saved(node, "result").detach()
        return torch.addcmul(a, a, a, value=-1).mul_(cotangent).mul_(1 - 2 * a)
    # For any other function the node's own map g -> s'(z) g is differentiated in z.
    with torch.enable_grad():
        slopes = node(cotangent)
        if not slopes.requires_grad:
            return None
        # As a gradient further down is computed as well, z's is taken before hooks on z see it.
        further = [GradientEdge(n, i) for n, i in below.node.next_functions if n is not None]
        c, *_ = torch.autograd.grad(
            slopes.sum(), [below, *further[:1]], retain_graph=True, allow_unused=True
        )
    return c

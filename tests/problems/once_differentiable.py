"""Functions and a model that autograd differentiates once only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel


class OnceDifferentiable(torch.autograd.Function):
    """x^2 whose backward is marked once differentiable, as in many fused kernels.

    Where the incoming gradient has a graph, torch puts an error node behind the result;
    ``torch.autograd.grad`` prunes that node when it is not on the way to an input, and says
    nothing. Where it has none, there is no error node.
    """

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**2

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class OnceCube(torch.autograd.Function):
    """x^3, likewise."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * gradient


class FusedAttention(nn.Module):
    """Causal, by the kernel that torch picks, which has no second derivative."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(4, 12)
        self.out = nn.Linear(4, 3)

    def forward(self, x):
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 2).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(mixed.transpose(1, 2).reshape(2, 5, 4))


class PlainAttention(FusedAttention):
    """The same parameters, in operations that have all derivatives."""

    def forward(self, x):
        with sdpa_kernel(SDPBackend.MATH):
            return super().forward(x)

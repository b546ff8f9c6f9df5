"""This module calls every op on small inputs, and has the results as they are worked out by hand, for kernels and twins alike.

Signs are those of seed 0, probe 0, parameter 0. They are the bits of ``PHILOX``, lowest bit first, and begin with
- + - + - + - - + +.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from metacurv import ops

# Philox4x32-10 of counter 0, key 0: the first vector of kat_vectors in Random123 (github.com/DEShawResearch/random123).
PHILOX = (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)

Pairs = Sequence[
    tuple[Tensor, object]
]  # a result, and the numbers that it must hold, nested as they are in it
ByHand = Callable[[str, torch.device], Pairs]


def rademacher_(backend: str, device: torch.device) -> Pairs:
    """The signs are the bits of ``PHILOX``, where a bit that is set stands for -1."""
    signs = torch.empty(128, device=device)
    ops.rademacher_([signs], seed=0, probe=0, backend=backend)
    bits = (word >> bit & 1 for word in PHILOX for bit in range(32))
    return [(signs, [1.0 - 2.0 * bit for bit in bits])]


def signed_sum(backend: str, device: torch.device) -> Pairs:
    """The ten powers of two add up to 1023, less twice those with a minus: the lowest ten bits of ``PHILOX``, 213."""
    powers = 2.0 ** torch.arange(10, device=device)
    return [(ops.signed_sum([powers], seed=0, probe=0, backend=backend), [597.0])]


def hutchinson_accumulate_(backend: str, device: torch.device) -> Pairs:
    """The samples 1 and -3 have the mean -1, and squared deviations that add up to 8."""
    mean, m2 = (torch.full((2,), x, dtype=torch.float64, device=device) for x in (1.0, 0.0))
    count = torch.ones((), dtype=torch.int64, device=device)
    products = [torch.tensor([3.0], device=device)]
    ops.hutchinson_accumulate_(mean, m2, count, products, seed=0, probe=0, backend=backend)
    return [(mean, [-1.0, -1.0]), (m2, [8.0, 8.0]), (count, 2)]


def reciprocal_lr_(backend: str, device: torch.device) -> Pairs:
    """The scale becomes 1 / (1 + 0.5 * 6), and a trace that is not a number leaves it there."""
    scale = torch.ones(1, device=device)
    for trace in (6.0, math.nan):
        reading = torch.tensor([trace], device=device)
        ops.reciprocal_lr_(scale, reading, alpha=0.5, backend=backend)
    return [(scale, [0.25])]


# One linear layer without a bias and an input (3, 4), under a softmax with two classes of probability 1/2.


def _one_layer(device: torch.device) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Returns log p, the weight of the only example, and the layer's input."""
    log_p = torch.full((1, 2), math.log(0.5), device=device)
    return log_p, torch.ones(1, device=device), [torch.tensor([[3.0, 4.0]], device=device)]


def chain_draws(backend: str, device: torch.device) -> Pairs:
    """The factor times (-1, 1) has the squared norm 1, so its outer product with the input has 25."""
    log_p, weight, inputs = _one_layer(device)
    run = ops.implementation(backend, device)
    return [(run.chain_draws(log_p, weight, 0, 0, 1, inputs, [], [], []), [[25.0, 1.0]])]


def chain_columns(backend: str, device: torch.device) -> Pairs:
    """The factor of diag(p) - p p' has one column, whose squared norm is the trace, 1/2."""
    log_p, weight, inputs = _one_layer(device)
    run = ops.implementation(backend, device)
    return [(run.chain_columns(log_p, weight, 0, 1, inputs, [], [], []), [[12.5, 0.5]])]

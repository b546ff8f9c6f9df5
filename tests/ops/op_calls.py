"""Arguments for every op."""

from __future__ import annotations

import torch


def statistics(entries):
    mean, m2 = (torch.zeros(entries, dtype=torch.float64) for _ in range(2))
    return mean, m2, torch.zeros((), dtype=torch.int64)


def tensor_list(dtype):
    """Contiguous, strided, 0-dim and empty."""
    return [
        torch.randn(5, 7).to(dtype),
        torch.randn(9, 40).to(dtype).t(),
        torch.randn(()).to(dtype),
        torch.empty(0, dtype=dtype),
    ]


def calls(dtype):
    """Positional arguments of every op."""
    common = (-1, torch.tensor(3), [0, 1, 2, 2**32 - 1], [0, 5, 0, 2**40])
    return {
        "rademacher_": (tensor_list(dtype), *common),
        "signed_sum": (tensor_list(dtype), *common),
        "hutchinson_accumulate_": (*statistics(5), tensor_list(dtype), *common),
        "reciprocal_lr_": (torch.tensor(1.0), torch.tensor(5.0, dtype=torch.float64), 0.1),
        "chain_draws": (*softmax(), -1, 3, 2, *chain()),
        "chain_columns": (*softmax(), 1, 4, *chain()),
    }


def softmax():
    return torch.randn(9, 5).log_softmax(1), torch.rand(9)


def chain():
    """Inputs, weights, slopes of a ReLU and of something else."""
    inputs = [torch.randn(9, 7), torch.rand(9, 6), torch.randn(9, 3)]
    weights = [torch.randn(5, 7), torch.randn(7, 6)]
    return inputs, weights, [torch.randn(9, 7), torch.rand(9, 6)], [True, False]


OPS = list(calls(torch.float32))

"""Prints the instruction set in use and what the ops on chains give on it: the bits depend on it, the values hardly."""

from __future__ import annotations

import torch

import metacurv
from metacurv import ops


def sums() -> list[float]:
    """Ragged sizes, one thread."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    inputs = [random(50, 37), random(50, 9), random(50, 100)]
    weights = [random(10, 37), random(37, 9)]
    slopes, rectified = [inputs[0], random(50, 9)], [True, False]
    run = ops.implementation("native", torch.device("cpu"))
    log_p = random(50, 10).log_softmax(1)
    chain = (inputs, weights, slopes, rectified)
    draws = run.chain_draws(log_p, torch.rand(50, generator=generator), -3, 2**32 - 1, 3, *chain)
    columns = run.chain_columns(log_p, torch.ones(1), 0, 9, *chain)
    found = draws, columns
    return [value for each in found for value in each.flatten().tolist()]


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(metacurv.build_info()["cpu_isa"], *sums())

"""Prints the instruction set in use and a digest of what the ops on a step give on it. Run by ``test_step_ops.py``."""

from __future__ import annotations

import hashlib

import torch

import metacurv
from metacurv import ops


def one_list_of_everything() -> tuple[list[torch.Tensor], list[torch.Tensor], list[float]]:
    """before, after and keep: every dtype, ragged sizes, numbers of widely different size, one tensor strided."""
    generator = torch.Generator().manual_seed(0)

    def random(numel: int) -> torch.Tensor:
        scale = torch.randint(-8, 9, (numel,), generator=generator)
        return torch.randn(numel, generator=generator, dtype=torch.float64) * torch.exp2(scale)

    before, after = [], []
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for numel in (100_003, 0, 5, 32_769, 640):
            start = random(numel).to(dtype)
            before.append(start)
            after.append((start.double() - 1e-3 * random(numel)).to(dtype))
    before[-1], after[-1] = before[-1].view(32, 20).t(), after[-1].view(20, 32)
    return before, after, [1 - 0.01 * t for t in range(len(before))]


def digest(backend: str) -> str:
    before, after, keep = one_list_of_everything()
    direction = [torch.empty_like(x) for x in before]
    sums = ops.step_direction_(direction, before, after, keep, 1e-3, backend=backend)
    ops.move_(before, before, direction, 0.3, backend=backend)
    result = hashlib.sha256()
    for tensor in (*direction, sums, *before):
        result.update(tensor.double().contiguous().numpy().tobytes())
    return result.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(metacurv.build_info()["cpu_isa"], digest("native"))

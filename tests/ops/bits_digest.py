"""Prints the instruction set in use and a digest of what the ops give on it. Run by ``test_instruction_sets.py``."""

from __future__ import annotations

import hashlib

import torch

import metacurv


def digest(backend: str) -> str:
    """Signs and sums of every dtype, over ragged sizes, offsets and a strided tensor."""
    result = hashlib.sha256()
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        tiny = torch.finfo(dtype).tiny
        tensors = [
            (torch.randn(n, generator=generator, dtype=torch.float64) * scale).to(dtype)
            for n in (0, 1, 31, 32, 33, 127, 129, 1024, 2047, 2049, 32768, 70001)
            for scale in (1.0, 100.0, tiny)  # the last gives subnormal numbers
        ]
        tensors.append(tensors[-2].view(70001, 1)[:70000].view(700, 100).t())
        tensors.append(tensors[-3][1::2])
        for offset in (0, 5, 2**15 - 3, 2**39 - 7):
            where = {
                "seed": 2**64 - 2,
                "probe": 2**32 - 2,
                "numbers": [2**32 - 1 - t for t in range(len(tensors))],
                "offsets": [offset + t for t in range(len(tensors))],
                "backend": backend,
            }
            sums = metacurv.ops.signed_sum(tensors, **where)
            result.update((sums + 0.0).numpy().tobytes())  # + 0.0: one zero, not two
            filled = [torch.empty_like(tensor) for tensor in tensors]
            metacurv.ops.rademacher_(filled, **where)
            for tensor in filled:
                result.update(tensor.to(torch.int8).contiguous().numpy().tobytes())
    return result.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(metacurv.build_info()["cpu_isa"], digest("native"))

"""Prints the instruction set in use and a digest of what softmax_factor and row_products give on it."""

from __future__ import annotations

import hashlib

import torch

import metacurv


def digest() -> str:
    """Ragged sizes, one thread."""
    result = hashlib.sha256()
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        for rows, cols in ((1, 1), (100, 10), (7, 31), (33, 65), (3, 2050)):
            p = torch.rand(rows, cols, generator=generator, dtype=torch.float64)
            sqrt_p, root = (p / p.sum(1, keepdim=True)).sqrt().to(dtype), p[:, 0].to(dtype)
            where = {"seed": 2**64 - 2, "probe": 2**32 - 2, "number": 5, "n_probes": 3}
            u = metacurv.ops.softmax_factor(sqrt_p, root, **where, backend="native")
            for w in (u, u.flip(0).contiguous()):
                sums = metacurv.ops.row_products(sqrt_p, u, w, backend="native")
                result.update((sums + 0.0).numpy().tobytes())  # + 0.0: one zero, not two
            result.update((u + 0.0).numpy().tobytes())
    return result.hexdigest()


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(metacurv.build_info()["cpu_isa"], digest())

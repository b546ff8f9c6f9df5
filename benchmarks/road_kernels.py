"""Small compiled kernels as roads, each with the lines that it is measured on.

A road is a function whose docstring says what it is. Its imports are its own, so that the function can go with the road.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.road_calls import CHARACTERS, DIGITS, RELU, estimate_trace, workload
from benchmarks.road_case import Case, Cases, always, no, nothing, patched


def small_kernel(name: str, composed: Callable[..., Tensor], *, in_columns: bool) -> Cases:
    """The lines that call a small kernel, against the same from compiled signs and torch's operations, and against its twin.

    ``in_columns``: whether exact traces call it, too.
    """
    from metacurv import _kernels, _reference
    from metacurv.estimators import opened

    no_kernel, no_chain = (
        ((_kernels, "chain_is_compiled", no), "both sides without the compiled chain"),
        ((opened, "find_chain", nothing), "both sides without chains"),
    )
    twin, double = getattr(_reference, name), workload(RELU).double()
    draws = [("activation", 1), ("activation", 16)]
    methods = [("exact", 1), *draws] if in_columns else draws
    for instead, against in ((composed, ""), (twin, "against its twin")):
        off, part = (_kernels, name, instead), (_kernels, name)
        for network, ways in ((DIGITS, methods), (CHARACTERS, draws)):
            for method, k in ways:
                make = estimate_trace(workload(network), "ggn", method, k)
                line = f"{method}, ggn, {network}, K = {k}"
                yield Case(line, make, patched(off), note=against, part=part)
        for method, k in methods:
            line = f"{method}, ggn, {RELU}, K = {k}"
            make = estimate_trace(workload(RELU), "ggn", method, k)
            for change, on_both in (no_kernel, no_chain):
                note = "; ".join(filter(None, (against, on_both)))
                yield Case(line, make, patched(off, change), patched(change), note=note)
            line = f"{method}, ggn, {RELU}, float64, K = {k}"
            make = estimate_trace(double, "ggn", method, k)
            yield Case(line, make, patched(off), in_table=False, note=against)


def alone(name: str, composed: Callable[..., Tensor], size: str, arguments: Any) -> Cases:
    """A small kernel by itself."""
    from metacurv import _kernels, _reference

    def call() -> Tensor:
        found: Tensor = getattr(_kernels, name)(*arguments)
        return found

    for instead, note in ((composed, ""), (getattr(_reference, name), "against its twin")):
        off = patched((_kernels, name, instead))
        yield Case(f"alone: {size}", always(call), off, in_table=False, note=note)


def softmax_factor() -> Cases:
    """The compiled random cotangents of softmax cross-entropy, against compiled signs and torch's operations."""
    from metacurv import _kernels

    def composed(
        sqrt_p: Tensor, root: Tensor, seed: int, probe: Any, number: int, n_probes: int
    ) -> Tensor:
        signs = sqrt_p.new_empty(n_probes, *sqrt_p.shape)
        for k in range(n_probes):
            _kernels.rademacher_([signs[k]], seed, probe + k, [number], [0])
        t = signs.mul_(sqrt_p)
        return (t - t.square() * t.sum(2, keepdim=True)).mul_(root.unsqueeze(1))

    yield from small_kernel("softmax_factor", composed, in_columns=False)
    for dtype in (torch.float32, torch.float64):
        for rows, classes in ((100, 10), (1024, 94)):
            p = torch.randn(rows, classes, dtype=dtype).softmax(1)
            size = f"16 draws, [{rows}, {classes}], {str(dtype)[6:]}"
            arguments = (p.sqrt(), torch.ones(rows, dtype=dtype), 0, 1, 0, 16)
            yield from alone("softmax_factor", composed, size, arguments)


def row_products() -> Cases:
    """The compiled sums of products of per-example gradients, in float64, against torch's operations in the own dtype."""

    def composed(a: Tensor, u: Tensor, w: Tensor) -> Tensor:
        products = torch.linalg.vecdot(u, w).double()
        norms = torch.linalg.vecdot(a, a).double()
        return torch.stack([products @ norms, products.sum(1)], dim=1)

    yield from small_kernel("row_products", composed, in_columns=True)
    for dtype in (torch.float32, torch.float64):
        for draws in (1, 16):
            shapes = ((100, 100), (draws, 100, 100), (draws, 100, 100))
            size = f"a [100, 100], u and w [{draws}, 100, 100], {str(dtype)[6:]}"
            tensors = tuple(torch.randn(*shape, dtype=dtype) for shape in shapes)
            yield from alone("row_products", composed, size, tensors)

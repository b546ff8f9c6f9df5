"""Roads to samples v . H v, each with the lines that it is measured on.

A road is a function whose docstring says what it is. Its imports are its own, so that the function can go with the road.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from benchmarks.curvature_workloads import Workload
from benchmarks.lines import LARGE, SMALL
from benchmarks.road_calls import CHARACTERS, DIGITS, TANH, hessian_trace, residual, workload
from benchmarks.road_case import Case, Cases, Row, Switch, always, no, nothing, patched


def products_of(problem: Workload) -> str:
    """Returns the name of the way to v . H v that ``hessian_trace`` takes for a workload."""
    from metacurv.estimators.hessian_products import choose_products
    from metacurv.estimators.parameters import number_parameters

    loss = problem.loss(problem.model(problem.x), problem.y)
    named = number_parameters(problem.model.named_parameters())
    return type(choose_products(loss, named, "auto")).__name__


def hutchinson(problem: Workload, way: str, off: Switch, *, in_table: bool = True) -> Cases:
    """One probe and sixteen, where ``hessian_trace`` takes the products called ``way``."""
    taken = products_of(problem)
    if taken != way:
        note = f"not met: hessian_trace takes {taken}"
        yield Row(f"hessian_trace, {problem.name}", in_table, note)
        return
    for k in (1, 16):
        line = f"hessian_trace, {problem.name}, K = {k}"
        yield Case(line, hessian_trace(problem, k), off, in_table=in_table)


def signed_matmul() -> Cases:
    """The compiled product with a sign matrix that is not stored, against a stored one and torch's product."""
    from metacurv import _native, ops

    taken = ops.signed_matmul_pays("auto", torch.empty(1))
    note = "" if taken else f"forced: not taken with {_native.cpu_isa()} kernels"
    on = patched((ops, "signed_matmul_pays", lambda *_: True))
    off = patched((ops, "signed_matmul_pays", no))
    for net in (SMALL, LARGE):
        line = f"hessian_trace, {net}, K = 16"
        yield Case(line, hessian_trace(workload(net), 16), off, on, note=note)
    for width in (100, 256):
        x, v = torch.randn(100, width), torch.empty(width, width)

        def unstored(x: Tensor = x, width: int = width) -> Tensor:
            shape: dict[str, Any] = {"number": 0, "rows": width, "cols": width}
            up = ops.signed_matmul(x, seed=0, probe=1, **shape, transpose=True)
            return up + ops.signed_matmul(x, seed=0, probe=1, **shape, transpose=False)

        def stored(x: Tensor = x, v: Tensor = v) -> Tensor:
            ops.rademacher_([v], seed=0, probe=1)
            return x @ v.t() + x @ v

        line = f"alone: x V' and x V, x [100, {width}], V [{width}, {width}]"
        yield Case(line, always(unstored), without=always(stored), in_table=False, note=note)


def linear_factors() -> Cases:
    """Products of linear layers by their factors, against double backward, where no rules serve the whole graph."""
    from metacurv.estimators import hessian_products

    off = patched((hessian_products, "worth_factoring", lambda *_: []))
    for name in (SMALL, LARGE, TANH, DIGITS, CHARACTERS):
        yield from hutchinson(workload(name), "FactoredDoubleBackward", off)
    yield from hutchinson(residual(), "FactoredDoubleBackward", off, in_table=False)


def forward_over_reverse() -> Cases:
    """Rules that push a probe up and pull it down, against double backward."""
    from metacurv.estimators import hessian_products

    off = patched((hessian_products, "_fast", nothing))
    for name in (SMALL, LARGE, TANH, DIGITS, CHARACTERS):
        yield from hutchinson(workload(name), "ForwardOverReverse", off)

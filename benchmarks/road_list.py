"""The roads of the package that are switched within one process, each with the lines that it is measured on.

A road is a function whose docstring says what it is. Its imports are its own, so that the function can go with the road.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.curvature_workloads import Workload
from benchmarks.lines import LARGE, SMALL
from benchmarks.road_calls import (
    CHARACTERS,
    DIGITS,
    HUNDRED_CLASSES,
    RELU,
    TANH,
    estimate_trace,
    hessian_trace,
    residual,
    training_step,
    workload,
)
from benchmarks.road_case import Case, Row, Switch, patched

Cases = Iterator[Case | Row]


def nothing(*_: Any, **__: Any) -> None:
    """Stands for a function that finds no way."""


def no(*_: Any) -> bool:
    """Stands for a question that is answered with no."""
    return False


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
        yield Case(
            line,
            lambda made=unstored: made,
            without=lambda made=stored: made,
            in_table=False,
            note=note,
        )


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


def chain_cases(
    off: Switch, on: Switch, note: str = "", *, in_double: bool = False, bends: bool = False
) -> Cases:
    """The lines of plain stacks of layers: exact and one draw, of the Hessian and of the Gauss-Newton matrix.

    ``bends`` adds the exact Hessian of a smooth stack, which only a chain gives.
    """
    for name in (RELU, TANH, HUNDRED_CLASSES):
        problem = workload(name)
        problem = problem.double() if in_double else problem
        for kind in ("hessian", "ggn"):
            for method in ("exact", "activation"):
                if name == TANH and kind == "hessian" and not (bends and method == "exact"):
                    continue  # its draws take the general form
                line = f"{method}, {kind}, {problem.name}{', float64' if in_double else ''}"
                in_table = name != HUNDRED_CLASSES and not in_double
                make = estimate_trace(problem, kind, method)
                yield Case(line, make, off, on, in_table=in_table, note=note)


def compiled_chain() -> Cases:
    """A chain's columns, draws and Taylor samples in one call of a kernel, against torch with the small kernels."""
    from metacurv import _kernels

    off = patched((_kernels, "chain_is_compiled", no))
    yield from chain_cases(off, patched(), bends=True)
    for name in (RELU, TANH):
        line = f"taylor, hessian, {name}, K = 16"
        yield Case(line, estimate_trace(workload(name), "hessian", "taylor", 16), off)
    yield Case(f"training step with a reading, {RELU}", training_step(workload(RELU)), off)


def chain() -> Cases:
    """Recognising a chain of layers, compiled or not, against the general form of activation space."""
    from metacurv import _kernels
    from metacurv.estimators import opened, step_reading

    find = [(module, "find_chain", nothing) for module in (opened, step_reading)]
    off = patched(*find)
    yield from chain_cases(off, patched())
    yield Case(f"training step with a reading, {RELU}", training_step(workload(RELU)), off)
    in_torch = (_kernels, "chain_is_compiled", no)
    note = "both sides without the compiled chain"
    yield from chain_cases(patched(in_torch, *find), patched(in_torch), note)
    yield from chain_cases(off, patched(), in_double=True)


def replicated_pull() -> Cases:
    """Many cotangents at once by rules, against a backward pass of the engine for each."""
    from metacurv.estimators import examine, opened

    find = (opened, "find_chain", nothing)
    # What is known of a graph holds the plan of its pull.
    one_by_one = (examine, "plan_pull", nothing), (examine, "_examined", OrderedDict())
    for name in (DIGITS, CHARACTERS, RELU, TANH):
        problem = workload(name)
        both, note = ([find], "both sides without chains") if name in (RELU, TANH) else ([], "")
        on, off = patched(*both), patched(*both, *one_by_one)
        if name != CHARACTERS:  # its columns take minutes
            line = f"exact, ggn, {name}"
            yield Case(line, estimate_trace(problem, "ggn", "exact"), off, on, note=note)
        for k in (1, 16):
            line = f"activation, ggn, {name}, K = {k}"
            make = estimate_trace(problem, "ggn", "activation", k)
            yield Case(line, make, off, on, note=note)


def small_kernel(name: str) -> Cases:
    """The lines that call a small kernel, with its twin in plain torch on the side without."""
    from metacurv import _kernels, _reference
    from metacurv.estimators import opened

    twin = (_kernels, name, getattr(_reference, name))
    off = patched(twin)
    for network in (DIGITS, CHARACTERS):
        problem = workload(network)
        if network == DIGITS:
            yield Case(f"exact, ggn, {network}", estimate_trace(problem, "ggn", "exact"), off)
        for k in (1, 16):
            line = f"activation, ggn, {network}, K = {k}"
            yield Case(line, estimate_trace(problem, "ggn", "activation", k), off)
    for change, note in (
        ((_kernels, "chain_is_compiled", no), "both sides without the compiled chain"),
        ((opened, "find_chain", nothing), "both sides without chains"),
    ):
        for method, k in (("exact", 1), ("activation", 1), ("activation", 16)):
            line = f"{method}, ggn, {RELU}, K = {k}"
            make = estimate_trace(workload(RELU), "ggn", method, k)
            yield Case(line, make, patched(twin, change), patched(change), note=note)
    double = workload(RELU).double()
    for method, k in (("exact", 1), ("activation", 16)):
        line = f"{method}, ggn, {RELU}, float64, K = {k}"
        make = estimate_trace(double, "ggn", method, k)
        yield Case(line, make, off, in_table=False)


def softmax_factor() -> Cases:
    """The compiled random cotangents of softmax cross-entropy, against their twin in torch."""
    from metacurv import _kernels, _reference

    off = patched((_kernels, "softmax_factor", _reference.softmax_factor))
    yield from small_kernel("softmax_factor")
    for dtype in (torch.float32, torch.float64):
        for rows, classes in ((100, 10), (1024, 94)):
            p = torch.randn(rows, classes, dtype=dtype).softmax(1)
            arguments = (p.sqrt(), torch.ones(rows, dtype=dtype), 0, 1, 0, 16)

            def call(arguments: Any = arguments) -> Tensor:
                return _kernels.softmax_factor(*arguments)

            line = f"alone: 16 draws, [{rows}, {classes}], {str(dtype)[6:]}"
            yield Case(line, lambda made=call: made, off, in_table=False)


def row_products() -> Cases:
    """The compiled sums of products of per-example gradients, against their twin in torch."""
    from metacurv import _kernels, _reference

    off = patched((_kernels, "row_products", _reference.row_products))
    yield from small_kernel("row_products")
    for dtype in (torch.float32, torch.float64):
        for draws in (1, 16):
            a, u, w = (
                torch.randn(*shape, dtype=dtype)
                for shape in ((100, 100), (draws, 100, 100), (draws, 100, 100))
            )

            def call(a: Tensor = a, u: Tensor = u, w: Tensor = w) -> Tensor:
                return _kernels.row_products(a, u, w)

            line = f"alone: a [100, 100], u and w [{draws}, 100, 100], {str(dtype)[6:]}"
            yield Case(line, lambda made=call: made, off, in_table=False)


ROADS: dict[str, Callable[[], Cases]] = {
    road.__name__: road
    for road in (
        signed_matmul,
        linear_factors,
        forward_over_reverse,
        compiled_chain,
        chain,
        replicated_pull,
        softmax_factor,
        row_products,
    )
}

"""Roads through activation space, each with the lines that it is measured on.

A road is a function whose docstring says what it is. Its imports are its own, so that the function can go with the road.
"""

from __future__ import annotations

from collections import OrderedDict
from types import MethodType
from typing import Any

from benchmarks.road_calls import (
    CHARACTERS,
    DIGITS,
    HUNDRED_CLASSES,
    RELU,
    TANH,
    TANH_TRAINED,
    estimate_trace,
    hessian_to_error,
    training_step,
    workload,
)
from benchmarks.road_case import Case, Cases, Switch, nothing, patched


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


def in_torch() -> list[tuple[Any, str, Any]]:
    """Returns what to patch for chains to be composed of the other ops."""
    from metacurv.ops._reference import OpSet
    from metacurv.ops.backend import KERNELS

    names = ("chain_draws", "chain_columns")
    return [(KERNELS, name, MethodType(getattr(OpSet, name), KERNELS)) for name in names]


def compiled_chain() -> Cases:
    """A chain's columns and draws in one call of a kernel, against torch with the small kernels."""
    off = patched(*in_torch())
    yield from chain_cases(off, patched(), bends=True)
    yield Case(f"training step with a reading, {RELU}", training_step(workload(RELU)), off)


def chain() -> Cases:
    """Recognising a chain of layers, compiled or not, against the general form of activation space."""
    from metacurv.estimators.select import measured_batch
    from metacurv.optim.reciprocal import readings

    find = [(module, "find_chain", nothing) for module in (measured_batch, readings)]
    off = patched(*find)
    yield from chain_cases(off, patched())
    yield Case(f"training step with a reading, {RELU}", training_step(workload(RELU)), off)
    for name in (TANH, TANH_TRAINED):  # exact as a chain, else by draws
        line = f"auto, hessian to 1 %, {name}"
        yield Case(line, hessian_to_error(workload(name), 0.01), off, rtol=0.05)
    note = "both sides without the compiled chain"
    yield from chain_cases(patched(*in_torch(), *find), patched(*in_torch()), note)
    yield from chain_cases(off, patched(), in_double=True)


def replicated_pull() -> Cases:
    """Many cotangents at once by rules, against a backward pass of the engine for each."""
    from metacurv.estimators.activation import examine, space
    from metacurv.estimators.select import measured_batch

    find = (measured_batch, "find_chain", nothing)
    # What is known of a graph holds the plan of its pull.
    known: OrderedDict[object, object] = OrderedDict()
    one_by_one = [(examine, "plan_pull", nothing), (examine, "_examined", known)]
    part = (space, "ReplicatedPull")
    for name in (DIGITS, CHARACTERS, RELU, TANH):
        problem = workload(name)
        both, note = ([find], "both sides without chains") if name in (RELU, TANH) else ([], "")
        on, off = patched(*both), patched(*both, *one_by_one)
        if name != CHARACTERS:  # its columns take minutes
            line = f"exact, ggn, {name}"
            make = estimate_trace(problem, "ggn", "exact")
            yield Case(line, make, off, on, note=note, part=part)
        for k in (1, 16):
            line = f"activation, ggn, {name}, K = {k}"
            make = estimate_trace(problem, "ggn", "activation", k)
            yield Case(line, make, off, on, note=note, part=part)
    problem, off = workload(TANH), patched(*one_by_one)
    for k in (1, 16):  # signs at its activations are drawn in the general form
        line = f"activation, hessian, {TANH}, K = {k}"
        yield Case(line, estimate_trace(problem, "hessian", "activation", k), off, part=part)

"""Roads to samples v . H v, each with the lines that it is measured on.

A road is a function whose docstring says what it is. Its imports are its own, so that the function can go with the road.
"""

from __future__ import annotations

from benchmarks.curvature_workloads import Workload
from benchmarks.lines import LARGE, SMALL
from benchmarks.road_calls import CHARACTERS, DIGITS, TANH, hessian_trace, workload
from benchmarks.road_case import Case, Cases, Row, Switch, nothing, patched


def products_of(problem: Workload) -> str:
    """Returns the name of the way to v . H v that ``hessian_trace`` takes for a workload."""
    from metacurv.estimators.probes.products import choose_products
    from metacurv.estimators.problem.parameters import number_parameters

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


def forward_over_reverse() -> Cases:
    """Rules that push a probe up and pull it down, against double backward."""
    from metacurv.estimators.probes import products

    off = patched((products, "_by_rules", nothing))
    for name in (SMALL, LARGE, TANH, DIGITS, CHARACTERS):
        yield from hutchinson(workload(name), "ForwardOverReverse", off)

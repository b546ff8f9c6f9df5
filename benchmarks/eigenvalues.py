"""Time to eigenvalues, beside PyHessian, hessian-eigenthings and curvlinops with scipy: python -m benchmarks.eigenvalues

    all of the GGN     every eigenvalue that is not zero of a trained perceptron's Gauss-Newton matrix, batch 100
    top of the GGN     its five largest
    top of the Hessian its five largest, and those of a small GPT

Each of the others gets the loosest of its tolerances, or the fewest of its steps, whose values are right to 1e-3; time is the
processor's, one thread, medians of runs in turns. A gradient of the same batch is the unit. The result goes into
benchmarks/results/eigenvalues.json and with it into docs/results/eigenvalues.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch

import metacurv
from benchmarks.curvature_workloads import Workload, gpt, perceptron
from benchmarks.page_block import ROOT, write_block
from benchmarks.process import settle

RESULT = ROOT / "benchmarks" / "results" / "eigenvalues.json"
PAGE = ROOT / "docs" / "results" / "eigenvalues.md"
BLOCK = "eigenvalues"
RIGHT = 1e-3
TOLERANCES = (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-7)
STEPS = (6, 8, 10, 12, 15, 20, 25, 30, 40, 50, 70, 100)
K = 5

# Returns eigenvalues, the largest first.
Find = Callable[[], Sequence[float]]
# What to write for a setting, with its call.
Ways = Iterable[tuple[str, Find]]


@dataclass(frozen=True)
class Row:
    """One way on one line: its setting, CPU seconds, the same in gradients, and its largest relative error."""

    line: str
    way: str
    setting: str
    seconds: float
    gradients: float
    error: float


def cpu(call: Callable[[], object], repeats: int) -> float:
    """The median of the processor's seconds, after one call that is not counted where there are several."""
    if repeats > 1:
        call()
    found = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        found.append(time.process_time() - started)
    return statistics.median(found)


def gradient(work: Workload) -> Callable[[], object]:
    parameters = [p for p in work.model.parameters() if p.requires_grad]
    return lambda: torch.autograd.grad(work.loss(work.model(work.x), work.y), parameters)


def ours(work: Workload, kind: str) -> Find:
    def find() -> Sequence[float]:
        found = metacurv.top_eigenvalues(work.model, work.loss, work.x, work.y, kind=kind, k=K)
        return found.values.tolist()

    return find


def whole_ggn(work: Workload) -> Find:
    def find() -> Sequence[float]:
        found = metacurv.spectral_density(work.model, work.loss, work.x, work.y, kind="ggn")
        assert found.eigenvalues is not None
        return found.eigenvalues.tolist()

    return find


def pyhessian(work: Workload, tolerance: float) -> Find:
    from pyhessian import hessian

    def find() -> Sequence[float]:
        torch.manual_seed(0)
        matrix = hessian(work.model, work.loss, data=(work.x, work.y), cuda=False)
        values, _ = matrix.eigenvalues(top_n=K, maxIter=1000, tol=tolerance)
        return values

    return find


def curvlinops(work: Workload, kind: str, tolerance: float) -> Find:
    from curvlinops import GGNLinearOperator, HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    of_kind = HessianLinearOperator if kind == "hessian" else GGNLinearOperator
    parameters = [p for p in work.model.parameters() if p.requires_grad]

    def find() -> Sequence[float]:
        torch.manual_seed(0)
        operator = of_kind(
            work.model, work.loss, parameters, [(work.x, work.y)], check_deterministic=False
        ).to_scipy()
        values = eigsh(operator, k=K, which="LM", tol=tolerance, return_eigenvectors=False)
        return sorted(values.tolist(), key=abs, reverse=True)

    return find


def eigenthings(work: Workload, kind: str, steps: int) -> Find:
    from hessian_eigenthings import lanczos

    from benchmarks.peers.hessian_eigenthings import operator

    def find() -> Sequence[float]:
        matrix = operator(kind, work)
        found = lanczos(matrix, k=K, max_iter=steps, reorthogonalize=True, seed=0)
        return sorted(found.eigenvalues.tolist(), key=abs, reverse=True)

    return find


def truth(work: Workload, kind: str) -> list[float]:
    """The largest in size, in float64, to eight digits."""
    exact = work.double()
    found = metacurv.top_eigenvalues(
        exact.model, exact.loss, exact.x, exact.y, kind=kind, k=K, method="lanczos", rtol=1e-8
    )
    assert found.converged
    return found.values.tolist()


def off(values: Sequence[float], expected: Sequence[float]) -> float:
    """The largest relative error."""
    pairs = zip(values, expected, strict=True)
    return max(abs(value - right) / abs(right) for value, right in pairs)


def right_ones(ways: Ways, expected: Sequence[float]) -> tuple[str, Find, float] | None:
    """The first of some settings that gives values right to 1e-3, with its call and error; None where none does."""
    for setting, find in ways:
        error = off(find(), expected)
        if error <= RIGHT:
            return setting, find, error
    return None


def by_tolerance(way: Callable[[float], Find]) -> Ways:
    return ((f"tol={tolerance:g}", way(tolerance)) for tolerance in TOLERANCES)


def others(work: Workload, kind: str) -> dict[str, Ways]:
    """The other libraries with their settings, the fastest first."""
    found: dict[str, Ways] = {
        "curvlinops, eigsh": by_tolerance(partial(curvlinops, work, kind)),
        "hessian-eigenthings": ((f"{n} steps", eigenthings(work, kind, n)) for n in STEPS),
    }
    if kind == "hessian":
        found["PyHessian"] = by_tolerance(partial(pyhessian, work))
    return found


def rows_of(line: str, work: Workload, kind: str, repeats: int) -> list[Row]:
    """The line's rows: ours, and the others' at their best setting."""
    expected = truth(work, kind)
    unit = cpu(gradient(work), 4 * repeats)
    ways = {"metacurv": ("default", ours(work, kind), off(ours(work, kind)(), expected))}
    for name, settings in others(work, kind).items():
        found = right_ones(settings, expected)
        if found is None:
            print(f"{line}: {name} is right to {RIGHT:g} at no setting", file=sys.stderr)
            continue
        ways[name] = found
    rows = []
    for name, (setting, find, error) in ways.items():
        seconds = cpu(find, repeats)
        rows.append(Row(line, name, setting, seconds, seconds / unit, error))
        print(rows[-1], flush=True)
    return rows


def measured(repeats: int, *, with_gpt: bool) -> list[Row]:
    """All rows."""
    relu = perceptron("relu", True)
    unit = cpu(gradient(relu), 20 * repeats)
    everything = whole_ggn(relu)
    exact = relu.double()
    expected = whole_ggn(exact)()
    found = everything()
    error = max(abs(a - b) for a, b in zip(found, expected, strict=False)) / expected[0]
    seconds = cpu(everything, repeats)
    line = "all eigenvalues of the GGN, perceptron"
    rows = [Row(line, "metacurv", f"{len(found)} above rounding", seconds, seconds / unit, error)]
    print(rows[0], flush=True)
    rows += rows_of("top 5 of the GGN, perceptron", relu, "ggn", repeats)
    rows += rows_of("top 5 of the Hessian, perceptron", relu, "hessian", repeats)
    if with_gpt:
        rows += rows_of("top 5 of the Hessian, GPT", gpt(), "hessian", 1)
    return rows


def page_block(stored: dict) -> str:
    """The table."""
    lines = [
        "| line | way | setting | CPU time | in gradients | largest relative error |",
        "|---|---|---|---|---|---|",
    ]
    for row in stored["rows"]:
        seconds = row["seconds"]
        shown = f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"
        lines.append(
            f"| {row['line']} | {row['way']} | {row['setting']} | {shown} | {row['gradients']:.0f} | {row['error']:.1e} |"
        )
    lines += [
        "",
        f"Measured with torch {stored['torch']}, one thread, `python -m benchmarks.eigenvalues`.",
    ]
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9, metavar="N", help="timed calls of each")
    parser.add_argument("--without-gpt", action="store_true", help="only the perceptrons")
    parser.add_argument("--out", type=Path, default=RESULT, metavar="FILE", help="the JSON file")
    given = parser.parse_args()
    settle()
    rows = measured(given.repeats, with_gpt=not given.without_gpt)
    stored = {"torch": torch.__version__, "rows": [asdict(row) for row in rows]}
    given.out.write_text(json.dumps(stored, indent=1) + "\n")
    if given.out == RESULT:
        write_block(PAGE, BLOCK, page_block(stored))
    return 0


if __name__ == "__main__":
    sys.exit(main())

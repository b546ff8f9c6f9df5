"""Traces of networks as people train them, to 5 %, beside PyHessian, curvlinops, hessian-eigenthings and a loop in plain torch:

    python -m benchmarks.real_networks [NETWORK ...]

A gradient of the same batch is the unit; time is the processor's, one thread, medians. Ours is the whole call, with looking at
the graph for the first time (cold) and, the median over seeds, without (warm). The others draw as many Hutchinson samples as
give the standard error that ours reached (1 % where ours is exact), by the deviation of 24 samples of the loop; they get no
time for finding out how many. The result goes into benchmarks/results/real_networks.json and docs/results/real-networks.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

import metacurv
from benchmarks.curvature_truth import Kind
from benchmarks.curvature_workloads import Workload
from benchmarks.eigenvalues import cpu, gradient
from benchmarks.page_block import ROOT, write_block
from benchmarks.process import settle
from benchmarks.real_workloads import NETWORKS
from metacurv.estimators.activation import examine

RESULT = ROOT / "benchmarks" / "results" / "real_networks.json"
PAGE = ROOT / "docs" / "results" / "real-networks.md"
BLOCK = "real-networks"
KINDS: tuple[Kind, ...] = ("hessian", "ggn")
RTOL, SEEDS, PROBES, RUNS = 0.05, 3, 24, 3

Product = Callable[[list[Tensor]], Sequence[Tensor]]


@dataclass(frozen=True)
class Row:
    """One network and matrix: what ours took and reached, and what the others take for as much, all in gradients.

    ``deviation`` is that of one Hutchinson sample, ``peers`` maps each peer to its gradients.
    """

    network: str
    parameters: int
    kind: str
    seconds: float
    method: str
    value: float
    stderr: float
    samples: int
    cold: float
    warm: float
    deviation: float
    loop_value: float
    loop_stderr: float
    peers: dict[str, float]


def trained(work: Workload) -> list[Tensor]:
    return [p for p in work.model.parameters() if p.requires_grad]


def signs(like: Sequence[Tensor], seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randint(0, 2, p.shape, generator=generator).to(p.dtype).mul_(2).sub_(1) for p in like
    ]


def loop(work: Workload) -> Product:
    """Hessian-vector products by a graph of the gradient that is kept."""
    parameters = trained(work)
    gradients = torch.autograd.grad(
        work.loss(work.model(work.x), work.y), parameters, create_graph=True
    )

    def product(v: list[Tensor]) -> Sequence[Tensor]:
        return torch.autograd.grad(gradients, parameters, v, retain_graph=True)

    return product


def loop_of_ggn(work: Workload) -> Product:
    """J' H_out J v: J v by the double backward trick, H_out by a double backward through the loss."""
    parameters = trained(work)
    output = work.model(work.x)
    w = torch.zeros_like(output, requires_grad=True)
    pulled = torch.autograd.grad(output, parameters, w, create_graph=True)
    leaf = output.detach().requires_grad_()
    (slope,) = torch.autograd.grad(work.loss(leaf, work.y), leaf, create_graph=True)

    def product(v: list[Tensor]) -> Sequence[Tensor]:
        (pushed,) = torch.autograd.grad(pulled, w, v, retain_graph=True)
        (bent,) = torch.autograd.grad(slope, leaf, pushed, retain_graph=True)
        return torch.autograd.grad(output, parameters, bent, retain_graph=True)

    return product


def pyhessian(work: Workload) -> Product:
    from pyhessian import hessian
    from pyhessian.utils import hessian_vector_product

    matrix = hessian(work.model, work.loss, data=(work.x, work.y), cuda=False)
    return lambda v: hessian_vector_product(matrix.gradsH, matrix.params, v)


def curvlinops(work: Workload, kind: Kind) -> Product:
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    of_kind = HessianLinearOperator if kind == "hessian" else GGNLinearOperator
    operator = of_kind(
        work.model, work.loss, trained(work), [(work.x, work.y)], check_deterministic=False
    )
    return lambda v: operator @ v


def eigenthings(work: Workload, kind: Kind) -> Product:
    from benchmarks.peers.hessian_eigenthings import operator

    matrix = operator(kind, work)
    return lambda v: [matrix.matvec(torch.cat([x.flatten() for x in v]))]


def peers(work: Workload, kind: Kind) -> Iterator[tuple[str, Callable[[], Product]]]:
    if kind == "ggn":
        yield "plain torch", lambda: loop_of_ggn(work)
    else:
        yield "plain torch", lambda: loop(work)
        yield "PyHessian", lambda: pyhessian(work)
    yield "hessian-eigenthings", lambda: eigenthings(work, kind)
    yield "curvlinops", lambda: curvlinops(work, kind)


def ours(work: Workload, kind: Kind, seed: int) -> metacurv.TraceEstimate:
    return metacurv.estimate_trace(
        work.model, work.loss, work.x, work.y, kind=kind, rtol=RTOL, seed=seed
    )


def row_of(work: Workload, kind: Kind) -> Row:
    """Measures one network and matrix."""
    parameters = trained(work)
    unit = cpu(gradient(work), 9)

    def once(call: Callable[[], object]) -> float:
        return cpu(call, 1) / unit

    examine._examined.clear()
    of_cold = once(lambda: ours(work, kind, 0))
    estimates: list[metacurv.TraceEstimate] = []
    of_warm = statistics.median(
        once(lambda seed=seed: estimates.append(ours(work, kind, seed))) for seed in range(SEEDS)
    )
    median = sorted(estimates, key=lambda e: e.n_samples)[SEEDS // 2]
    product = next(peers(work, kind))[1]()
    samples = []
    for seed in range(PROBES):
        v = signs(parameters, seed)
        samples.append(float(sum((a * b).sum() for a, b in zip(v, product(v), strict=True))))
    del product
    deviation = statistics.stdev(samples)
    # An exact trace is worth as many samples as 1 % takes.
    stderr = median.stderr or 0.01 * abs(median.value)
    needed = max(2.0, (deviation / stderr) ** 2)
    found = {}
    v = signs(parameters, 0)
    for name, make in peers(work, kind):
        try:
            setup = once(make)
            product = make()
            found[name] = setup + needed * cpu(lambda product=product: product(v), RUNS) / unit
        except Exception as error:
            print(
                f"{work.name}, {kind}: {name} fails: {type(error).__name__}: {str(error)[:200]}",
                file=sys.stderr,
            )
    row = Row(
        network=work.name,
        parameters=sum(p.numel() for p in parameters),
        kind=kind,
        seconds=unit,
        method=median.method,
        value=median.value,
        stderr=median.stderr,
        samples=median.n_samples,
        cold=of_cold,
        warm=of_warm,
        deviation=deviation,
        loop_value=statistics.fmean(samples),
        loop_stderr=deviation / PROBES**0.5,
        peers=found,
    )
    off = abs(row.value - row.loop_value)
    assert off <= 4 * (row.stderr**2 + row.loop_stderr**2) ** 0.5, row
    return row


def page_block(stored: dict) -> str:
    """The table."""
    lines = [
        "| network | matrix | ours | value | samples | first call | later calls | the best of the others | ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in stored["rows"]:
        name, best = min(row["peers"].items(), key=lambda item: item[1])
        error = f" ± {row['stderr']:.2g}" if row["stderr"] else ""
        lines.append(
            f"| {row['network']} | {row['kind']} | `{row['method']}` | {row['value']:.4g}{error} | {row['samples'] or ''} | "
            f"{row['cold']:.3g} | {row['warm']:.3g} | {name} {best:.3g} | {row['warm'] / best:.2f} |"
        )
    lines += [
        "",
        f"Measured with torch {stored['torch']}, one thread, `python -m benchmarks.real_networks`.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks", nargs="*", choices=[*NETWORKS, []], metavar="NETWORK", help=", ".join(NETWORKS)
    )
    parser.add_argument("--out", type=Path, default=RESULT, metavar="FILE")
    options = parser.parse_args(arguments)
    settle()
    torch.set_num_threads(1)
    chosen = options.networks or list(NETWORKS)
    rows: dict[tuple[str, str], dict] = {}
    if options.out.exists():
        rows = {(r["network"], r["kind"]): r for r in json.loads(options.out.read_text())["rows"]}
    for name in chosen:
        work = NETWORKS[name]()
        for kind in KINDS:
            row = row_of(work, kind)
            print(row, flush=True)
            rows[row.network, kind] = asdict(row)
            stored = {"torch": torch.__version__, "rows": list(rows.values())}
            options.out.write_text(json.dumps(stored, indent=1) + "\n")
    if options.out == RESULT:
        write_block(PAGE, BLOCK, page_block(stored))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Everyone else's ways to a trace; run it to see that each is right where it claims to be, and what it costs there.

python benchmarks/curvature_peers.py [--quick]
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter

from tqdm import tqdm

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.curvature_truth import Kind, truth
from benchmarks.curvature_workloads import MLP, WORKLOADS, Workload
from benchmarks.peers import (
    activation_space,
    asdl,
    backpack,
    curvlinops,
    hessian_eigenthings,
    nngeometry,
    plain_torch,
    pyhessian,
    pytorch_optimizer,
)
from benchmarks.peers.peer import Peer, version
from benchmarks.process import settle

LIBRARIES = (
    plain_torch,
    backpack,
    curvlinops,
    hessian_eigenthings,
    nngeometry,
    asdl,
    pyhessian,
    pytorch_optimizer,
)
PEERS: tuple[Peer, ...] = tuple(peer for library in LIBRARIES for peer in library.PEERS)
BY_HAND: tuple[Peer, ...] = activation_space.PEERS
NAMED = {peer.name: peer for peer in (*PEERS, *BY_HAND)}

# Float32 against float64, for what is exact.
ROUNDING = 2e-5


def peers_of(workload: Workload, kind: Kind) -> list[Peer]:
    """Those that give this trace of this workload."""
    return [peer for peer in PEERS if peer.measures(workload, kind)]


def values(peer: Peer, workload: Workload, samples: int) -> list[float]:
    """Readings that hold about ``samples`` samples together; two at least, and one where it is exact."""
    if peer.noise == "none":
        return [peer.make(workload, 1)()]
    k = 6 if peer.noise == "sketch" else 4
    call = peer.make(workload, k)
    return [call() for _ in range(max(4, samples // k))]


def agreement(peer: Peer, workload: Workload, kind: Kind, samples: int) -> tuple[float, float]:
    """How far the mean reading lies from the truth, relatively, and in joint standard errors (0 where it is exact)."""
    known = truth(workload, kind)
    found = values(peer, workload, samples)
    off = statistics.fmean(found) - known.value
    own = statistics.stdev(found) / math.sqrt(len(found)) if len(found) > 1 else 0.0
    error = math.hypot(own, known.stderr)
    return off / abs(known.value), off / error if error else 0.0


def kinds_of(workload: Workload) -> tuple[Kind, ...]:
    return ("hessian", "ggn") if workload.family == MLP else ("ggn",)


def check(samples: int, workloads: Sequence[Workload]) -> Iterator[str]:
    """Rows of a Markdown table. A peer is also tried on networks it does not claim, to keep the claims honest."""
    yield "| workload | trace | peer | version | off by | standard errors | ms a call | verdict |"
    yield "|---|---|---|---|---|---|---|---|"
    cases = [
        (workload, kind, peer)
        for workload in workloads
        for kind in kinds_of(workload)
        for peer in (*PEERS, *BY_HAND)
        if peer.kind == kind
    ]
    for workload, kind, peer in tqdm(cases):
        cells = f"| {workload.name} | {kind} | {peer.name} | {version(peer)} |"
        claimed = peer.measures(workload, kind)
        try:
            off, errors = agreement(peer, workload, kind, samples)
            call = peer.make(workload, 12)
            call()
            began = perf_counter()
            call()
            took = f"{1e3 * (perf_counter() - began):.3g}"
        except Exception as error:
            if claimed:
                raise
            yield f"{cells} | | | not claimed: {type(error).__name__} |"
            continue
        right = abs(off) < ROUNDING if peer.noise == "none" else abs(errors) < 4
        verdict = ("right" if right else "WRONG") if claimed else "not claimed"
        yield f"{cells} {off:+.1e} | {errors:+.1f} | {took} | {verdict} |"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer samples, untrained MLP alone")
    options = parser.parse_args(arguments)
    settle()
    names = list(WORKLOADS)[: 1 if options.quick else None]
    workloads = [WORKLOADS[name]() for name in names]
    wrong = False
    for row in check(64 if options.quick else 400, workloads):
        wrong |= "WRONG" in row
        tqdm.write(row)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())

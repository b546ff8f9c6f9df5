"""Traces of the Hessian on one device: ours against Hessian-vector products in plain torch, eager and compiled.

    python benchmarks/device_traces.py --device cuda

torch.compile does not differentiate a compiled backward pass again, so the compiled products are forward over reverse mode
(jvp of grad), one at a time and all probes under vmap. ``hessian_trace`` and the others take one number of probes, so they
have the same error and differ in time; given the same signs they give the same number, which is checked. ``estimate_trace``
chooses its method itself. Milliseconds are by CUDA events, on the CPU by the time of the process; medians of calls that take
turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import metacurv
from benchmarks.device_case import ROUNDS
from benchmarks.on_device import why_not

SEED = 3
ACTIVATIONS: dict[str, type[nn.Module]] = {"ReLU": nn.ReLU, "tanh": nn.Tanh}
CHECK_SAMPLES = 64  # fewer have no standard error to speak of

Draw = Callable[[list[Tensor], int], object]
Trace = Callable[[Draw], float]


@dataclass(frozen=True)
class Sizes:
    """``compiler`` is a backend of torch.compile."""

    width: int
    batch: int
    probes: int
    seconds: float
    compiler: str


FULL = Sizes(width=2048, batch=512, probes=16, seconds=3.0, compiler="inductor")
SMALL = Sizes(width=16, batch=8, probes=2, seconds=0.001, compiler="aot_eager")


@dataclass(frozen=True)
class Row:
    """Medians in milliseconds; ``ratio`` is the other's over ours. Beside it, what a time is worth: standard errors."""

    network: str
    ours: str
    other: str
    ours_ms: float
    other_ms: float
    ratio: float
    ours_stderr: float
    other_stderr: float
    agree: bool


class Problem:
    """A perceptron of four layers, and a batch: x [batch, width], y [batch] labels of ten classes."""

    def __init__(self, device: str, activation: str, sizes: Sizes) -> None:
        torch.manual_seed(0)
        width, act = sizes.width, ACTIVATIONS[activation]
        hidden = [part for _ in range(3) for part in (nn.Linear(width, width), act())]
        self.model = nn.Sequential(*hidden, nn.Linear(width, 10)).to(device)
        self.x = torch.randn(sizes.batch, width, device=device)
        self.y = torch.randint(0, 10, (sizes.batch,), device=device)
        self.params = {name: p.detach() for name, p in self.model.named_parameters()}
        self.probes, self._compiler = sizes.probes, sizes.compiler

    def ours(self, n_samples: int) -> metacurv.TraceEstimate:
        loss = functional.cross_entropy(self.model(self.x), self.y)
        return metacurv.hessian_trace(
            loss, self.model.named_parameters(), n_samples=n_samples, seed=SEED
        )

    def ours_chosen(self) -> metacurv.TraceEstimate:
        return metacurv.estimate_trace(
            self.model, functional.cross_entropy, self.x, self.y, n_samples=self.probes, seed=SEED
        )

    def eager(self, draw: Draw) -> float:
        """What one writes by hand."""
        params = list(self.model.parameters())
        loss = functional.cross_entropy(self.model(self.x), self.y)
        gradients = torch.autograd.grad(loss, params, create_graph=True)
        total = torch.zeros((), device=self.x.device)
        for probe in range(self.probes):
            vs = self._drawn(draw, probe)
            products = torch.autograd.grad(gradients, params, vs, retain_graph=True)
            total += torch.stack([(v * h).sum() for v, h in zip(vs, products, strict=True)]).sum()
        return float(total) / self.probes

    def compiled(self) -> Trace:
        sample = torch.compile(self._sample, backend=self._compiler)

        def trace(draw: Draw) -> float:
            total = torch.zeros((), device=self.x.device)
            for probe in range(self.probes):
                total += sample(self._drawn(draw, probe))
            return float(total) / self.probes

        return trace

    def compiled_vmap(self) -> Trace:
        samples = torch.compile(torch.vmap(self._sample), backend=self._compiler)

        def trace(draw: Draw) -> float:
            drawn = zip(*(self._drawn(draw, probe) for probe in range(self.probes)), strict=True)
            return float(samples([torch.stack(vs) for vs in drawn]).mean())

        return trace

    def _sample(self, vs: list[Tensor]) -> Tensor:
        """v . H v"""

        def loss_of(values: dict[str, Tensor]) -> Tensor:
            output = torch.func.functional_call(self.model, values, (self.x,))
            return functional.cross_entropy(output, self.y)

        directions = dict(zip(self.params, vs, strict=True))
        _, products = torch.func.jvp(torch.func.grad(loss_of), (self.params,), (directions,))
        return torch.stack([(v * products[name]).sum() for name, v in directions.items()]).sum()

    def _drawn(self, draw: Draw, probe: int) -> list[Tensor]:
        vs = [torch.empty_like(p) for p in self.params.values()]
        draw(vs, probe)
        return vs


def in_torch(vs: list[Tensor], probe: int) -> None:
    """Signs as one draws them by hand."""
    for v in vs:
        v.bernoulli_(0.5).mul_(2).sub_(1)


def of_ours(vs: list[Tensor], probe: int) -> None:
    """The signs of hessian_trace's probe."""
    metacurv.ops.rademacher_(vs, seed=SEED, probe=probe, numbers=list(range(len(vs))))


def milliseconds(work: Callable[[], object], device: str) -> float:
    """Of one call."""
    if device == "cpu":
        started = time.process_time()
        work()
        return 1e3 * (time.process_time() - started)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    work()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def medians(works: Sequence[Callable[[], object]], device: str, seconds: float) -> list[float]:
    """Of calls that take turns for about ``seconds``; the first of each does not count."""
    for work in works:
        work()
    times: list[list[float]] = [[] for _ in works]
    end = time.monotonic() + seconds
    while len(times[0]) < ROUNDS or time.monotonic() < end:
        for work, taken in zip(works, times, strict=True):
            taken.append(milliseconds(work, device))
    return [statistics.median(taken) for taken in times]


def rows(device: str, activation: str, sizes: Sizes) -> list[Row]:
    """Ours, each against each of the others."""
    problem = Problem(device, activation, sizes)
    reference, chosen = problem.ours(problem.probes), problem.ours_chosen()
    sampled = problem.ours(CHECK_SAMPLES)
    right = abs(chosen.value - sampled.value) <= 5 * (chosen.stderr + sampled.stderr)
    rounding = 1e-3 * (abs(reference.value) + reference.stderr * problem.probes**0.5)
    others = {
        "eager loop": problem.eager,
        "compiled loop": problem.compiled(),
        "compiled, under vmap": problem.compiled_vmap(),
    }
    agree = [abs(each(of_ours) - reference.value) <= rounding for each in others.values()]
    ours = {
        f"hessian_trace, {problem.probes} probes": lambda: problem.ours(problem.probes).value,
        f"estimate_trace, {chosen.method}": lambda: problem.ours_chosen().value,
    }
    by_hand = [lambda each=each: each(in_torch) for each in others.values()]
    times = medians([*ours.values(), *by_hand], device, sizes.seconds)
    judged = zip(ours, times, (True, right), (reference.stderr, chosen.stderr), strict=False)
    return [
        Row(
            activation,
            mine,
            other,
            ms,
            other_ms,
            other_ms / ms,
            stderr,
            reference.stderr,
            well and same,
        )
        for mine, ms, well, stderr in judged
        for other, other_ms, same in zip(others, times[len(ours) :], agree, strict=True)
    ]


def run(device: str, out: Path, sizes: Sizes) -> int:
    """Measures all, prints a table, writes ``out``. Returns: 1 where a result is wrong, else 0."""
    print(f"{'':54} {'ours, ms':>10} {'other, ms':>10} {'ratio':>7}   errors")
    found: list[Row] = []
    for activation in ACTIVATIONS:
        for row in rows(device, activation, sizes):
            name = f"{row.network}: {row.ours} / {row.other}"
            wrong = "" if row.agree else "  WRONG"
            times = f"{row.ours_ms:10.2f} {row.other_ms:10.2f} {row.ratio:7.2f}"
            print(f"{name:54} {times}   {row.ours_stderr:.2g} / {row.other_stderr:.2g}{wrong}")
            found.append(row)
        content: dict[str, Any] = {
            "command": f"python benchmarks/device_traces.py --device {device}",
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
            "torch": torch.__version__,
            "sizes": asdict(sizes),
            "rows": [asdict(row) for row in found],
        }
        out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written to {out}")
    return 0 if all(row.agree for row in found) else 1


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cuda", "cpu"], required=True, help="where to measure")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="file to write (default: benchmarks/results/DEVICE_traces.json)",
    )
    parser.add_argument(
        "--small",
        action="store_true",
        help="small sizes, and compiled without inductor, only to see that all of it runs",
    )
    options = parser.parse_args(arguments)
    if why := why_not(options.device):
        print(f"device_traces.py: --device {options.device}: {why}", file=sys.stderr)
        return 2
    results = Path(__file__).resolve().parent / "results"
    out = options.output or results / f"{options.device}_traces.json"
    return run(options.device, out, SMALL if options.small else FULL)


if __name__ == "__main__":
    sys.exit(main())

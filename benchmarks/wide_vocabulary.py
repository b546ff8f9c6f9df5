"""Memory of traces and products over a vocabulary of 50,000, beside a gradient's: python -m benchmarks.wide_vocabulary

For each call: the peak of torch's allocator, less what the forward pass holds, over that of a backward pass. The result goes
into benchmarks/results/wide_vocabulary.json and docs/results/real-networks.md.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

import torch
from torch import Tensor

import metacurv
from benchmarks.curvature_workloads import Workload
from benchmarks.page_block import ROOT, write_block
from benchmarks.peak_memory import peak_bytes
from benchmarks.process import settle
from benchmarks.real_workloads import wide_vocabulary

RESULT = ROOT / "benchmarks" / "results" / "wide_vocabulary.json"
PAGE = ROOT / "docs" / "results" / "real-networks.md"
BLOCK = "vocabulary"
MIB = 1 << 20


def held_by_forward(work: Workload) -> int:
    """Bytes of what a forward pass saves, parameters aside."""
    parameters = {p.untyped_storage().data_ptr() for p in work.model.parameters()}
    sizes: dict[int, int] = {}

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in parameters:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
        loss = work.loss(work.model(work.x), work.y)
    del loss
    return sum(sizes.values())


def calls(work: Workload) -> dict[str, Callable[[], object]]:
    """What is measured."""
    arguments = (work.model, work.loss, work.x, work.y)
    hessian = metacurv.curvature_operator(*arguments)
    ggn = metacurv.curvature_operator(*arguments, kind="ggn")
    v = torch.ones(hessian.shape[0])
    return {
        "a sample of the GGN's trace": lambda: metacurv.estimate_trace(
            *arguments, kind="ggn", n_samples=1
        ),
        "two probes of the Hessian's, `split`": lambda: metacurv.estimate_trace(
            *arguments, n_samples=2
        ),
        "two probes of the Hessian's, `hutchinson`": lambda: metacurv.estimate_trace(
            *arguments, method="hutchinson", n_samples=2
        ),
        "G v": lambda: ggn @ v,
        "H v": lambda: hessian @ v,
    }


def page_block(stored: dict) -> str:
    """The table."""
    lines = [
        "| call | peak memory, beside the forward pass | in backward passes |",
        "|---|---|---|",
    ]
    lines += [
        f"| {name} | {size / MIB:.0f} MiB | {size / stored['backward']:.1f} |"
        for name, size in stored["beyond"].items()
    ]
    lines += [
        "",
        f"A backward pass takes {stored['backward'] / MIB:.0f} MiB, the forward pass holds {stored['forward'] / MIB:.0f}. "
        f"Measured with torch {stored['torch']}, `python -m benchmarks.wide_vocabulary`.",
    ]
    return "\n".join(lines)


def main() -> int:
    """Measures and writes."""
    settle()
    work = wide_vocabulary()
    parameters = list(work.model.parameters())
    loss = work.loss(work.model(work.x), work.y)
    backward = peak_bytes(lambda: torch.autograd.grad(loss, parameters, retain_graph=True))
    forward = held_by_forward(work)
    beyond = {name: peak_bytes(call) - forward for name, call in calls(work).items()}
    stored = {
        "torch": torch.__version__,
        "backward": backward,
        "forward": forward,
        "beyond": beyond,
    }
    RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    write_block(PAGE, BLOCK, page_block(stored))
    print(page_block(stored))
    return 0


if __name__ == "__main__":
    sys.exit(main())

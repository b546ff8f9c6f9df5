"""Is this tree as fast as another one? The lines of the speed table, by public names, in turns.

    python -m benchmarks.two_trees TREE COMMIT    (TREE: a checkout of COMMIT, with kernels built in place)

Each tree runs in a process of its own, on one thread, and the processor's time counts. Where a process has its memory moves a
line by some percent, so that several pairs of processes are compared, and the table has the pair in the middle and the range
of all. The results go into benchmarks/results/two_trees.json and, as a table, into docs/develop/architecture.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.lines import LARGE, SMALL
from benchmarks.page_block import ROOT, write_block
from benchmarks.road_calls import (
    CHARACTERS,
    DIGITS,
    RELU,
    TANH,
    TANH_TRAINED,
    estimate_trace,
    hessian_to_error,
    hessian_trace,
    training_step,
    workload,
)
from benchmarks.road_case import Call, Case, Row, compare
from benchmarks.road_isa import There, child, rademacher_of, signed_sum_of

RESULT = ROOT / "benchmarks" / "results" / "two_trees.json"
PAGE = ROOT / "docs" / "develop" / "architecture.md"
BLOCK = "trees"
STEPS = 200  # of a whole training by the directional rule
# The other tree's package, with these benchmarks.
SERVE = (
    "import sys; tree, root = sys.argv[1:]; sys.path[:0] = [tree]; import metacurv; sys.path[0] = root; "
    "from benchmarks import road_isa, two_trees; road_isa.serve(two_trees.cases)"
)


def cases() -> Iterator[Case]:
    """A line for each thing that a user waits for."""
    for net in (SMALL, LARGE):
        for k in (1, 16):
            yield Case(f"hessian_trace, {net}, K = {k}", hessian_trace(workload(net), k))
    for name, kind, method, k in (
        (RELU, "ggn", "exact", 1),
        (RELU, "ggn", "activation", 1),
        (RELU, "ggn", "activation", 16),
        (TANH, "hessian", "exact", 1),
        (TANH, "hessian", "activation", 16),
        (DIGITS, "ggn", "exact", 1),
        (DIGITS, "ggn", "activation", 1),
        (DIGITS, "ggn", "activation", 16),
        (CHARACTERS, "ggn", "activation", 1),
    ):
        make = estimate_trace(workload(name), kind, method, k)
        # Since then positions are told apart by example, which makes other samples of the same signs.
        rtol = 1e-2 if name == CHARACTERS else 1e-4
        yield Case(f"{method}, {kind}, {name}, K = {k}", make, rtol=rtol)
    yield Case(
        f"auto, hessian to 1 %, {TANH_TRAINED}", hessian_to_error(workload(TANH_TRAINED), 0.01)
    )
    yield Case(f"training step with a reading, {RELU}", training_step(workload(RELU)))
    yield Case(f"directional rule, {STEPS} steps, {SMALL}", partial(directional_training, SMALL))
    for name, of in (("signed_sum", signed_sum_of), ("rademacher_", rademacher_of)):
        yield Case(f"{name}, 2^20 float32", partial(of, 1 << 20, torch.float32))


def directional_training(name: str) -> Call:
    """A whole training on one batch, from the same weights in each call; its number is the last loss."""
    import metacurv

    problem = workload(name)
    first = {key: value.clone() for key, value in problem.model.state_dict().items()}

    def train() -> float:
        problem.model.load_state_dict(first)
        opt: Any = metacurv.MetaCurvatureLR(
            torch.optim.Adam(problem.model.parameters()),
            model=problem.model,
            loss_fn=problem.loss,
            probe=[(problem.x, problem.y)],
            horizon=STEPS,
        )
        loss = torch.zeros(())
        for _ in range(STEPS):
            opt.zero_grad()
            loss = problem.loss(problem.model(problem.x), problem.y)
            loss.backward()
            opt.step()
        return float(loss)

    return train


def served(tree: Path) -> AbstractContextManager[subprocess.Popen[str]]:
    """A process that answers with the package of ``tree``."""
    environ = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return child(["-P", "-c", SERVE, str(tree), str(ROOT)], environ)


def page_block(stored: Mapping[str, Any]) -> str:
    """The table: how long this tree takes, as a share of the other one's time."""
    head = f"| line | before, `{stored['commit']}` | now | now / before, of {stored['pairs']} pairs of processes |"
    rows = [
        f"| {row['line']} | {row['without_s'] * 1e3:.3g} ms | {row['with_s'] * 1e3:.3g} ms | "
        f"{1 / row['ratio']:.2f} ({row['least']:.2f} to {row['most']:.2f}) |"
        for row in stored["rows"]
    ]
    return "\n".join([head, "|---|---|---|---|", *rows])


def in_the_middle(pairs: Sequence[Row]) -> dict[str, Any]:
    """The pair with the median ratio, with the least and the largest of now / before."""
    by_ratio = sorted(pairs, key=lambda row: 1 / (row.ratio or 1))
    least, most = (1 / (row.ratio or 1) for row in (by_ratio[0], by_ratio[-1]))
    return {**by_ratio[len(by_ratio) // 2].as_dict(), "least": least, "most": most}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tree", type=Path, help="a checkout with kernels built in place")
    parser.add_argument("commit", help="what it is a checkout of")
    parser.add_argument("--repeats", type=int, default=60, help="turns of each side (60)")
    parser.add_argument("--pairs", type=int, default=5, help="pairs of processes (5)")
    parser.add_argument("--only", metavar="TEXT", help="lines with this text, and write nothing")
    options = parser.parse_args()
    found: dict[str, list[Row]] = {}
    for _ in range(options.pairs):
        with served(ROOT) as here, served(options.tree.resolve()) as there:
            for case in cases():
                if options.only and options.only not in case.line:
                    continue
                sides = There(here, case.line), There(there, case.line)
                row = compare(case, *sides, options.repeats)
                print(f"{case.line}: now / before {1 / (row.ratio or 1):.3f}", flush=True)
                found.setdefault(case.line, []).append(row)
    if not options.only:
        stored = {
            "commit": options.commit,
            "pairs": options.pairs,
            "rows": [in_the_middle(pairs) for pairs in found.values()],
        }
        RESULT.write_text(json.dumps(stored, indent=1) + "\n")
        write_block(PAGE, BLOCK, page_block(stored))


if __name__ == "__main__":
    main()

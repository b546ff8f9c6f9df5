"""The chart of relative standard error against time: what each way to a trace gives for a given wait.

    python benchmarks/error_against_time.py [--quick] [--only "tanh MLP, trained" ...]

Writes benchmarks/results/error_against_time.json and .png, a panel a workload. Methods that sample are lines of slope about
-1/2; exact ones are points, drawn where float32 leaves them.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.curvature_ours import ours_for
from benchmarks.curvature_peers import BY_HAND, peers_of
from benchmarks.curvature_truth import Kind, truth
from benchmarks.curvature_workloads import MLP, WORKLOADS, Workload
from benchmarks.equal_error import ANCHORS, contender, deviation
from benchmarks.peers.peer import Peer, version
from benchmarks.process import settle
from benchmarks.ratio import turn

HERE = Path(__file__).resolve().parent
# Errors at which sketches, whose samples a given error decides, are measured.
SKETCHED = (0.1, 0.05, 0.02, 0.01)
COUNTS = (1, 4, 16, 64, 256)
COLOURS = {
    "metacurv": "#0072B2",
    "torch": "#777777",
    "backpack-for-pytorch": "#D55E00",
    "curvlinops-for-pytorch": "#009E73",
    "hessian-eigenthings": "#CC79A7",
    "nngeometry": "#E69F00",
    "asdfghjkl": "#8B4513",
    "pyhessian": "#000000",
    "pytorch_optimizer": "#56B4E9",
}
FLOOR = 1e-7  # an exact value's error in float32, for the chart


def seconds_of(peer: Peer, workload: Workload, k: int, repeats: int) -> float:
    call = peer.make(workload, k)
    call()
    return statistics.median(turn(call, 1).thread for _ in range(repeats))


def curve(peer: Peer, workload: Workload, kind: Kind, repeats: int) -> list[dict[str, float]]:
    """Points of samples, seconds a reading, and its relative error."""
    if peer.noise == "none":
        known = truth(workload, kind)
        off = abs(peer.make(workload, 1)() / known.value - 1)
        seconds = seconds_of(peer, workload, 1, repeats)
        return [{"samples": 1, "seconds": seconds, "error": max(off, FLOOR)}]
    if peer.noise == "sketch":
        sides = [contender(peer, workload, rtol) for rtol in SKETCHED]
        return [
            {
                "samples": side.samples,
                "seconds": side.seconds(
                    [seconds_of(peer, workload, k, repeats) for k, _ in side.timed]
                ),
                "error": rtol,
            }
            for side, rtol in zip(sides, SKETCHED, strict=True)
        ]
    most = 2 * ANCHORS[workload.family][1]
    return [
        {
            "samples": k,
            "seconds": seconds_of(peer, workload, k, repeats),
            "error": deviation(peer, workload) / k**0.5,
        }
        for k in COUNTS
        if k <= most
    ]


def measured(workload: Workload, *, quick: bool) -> list[Peer]:
    kind = kind_of(workload)
    by_hand = [peer for peer in BY_HAND if peer.measures(workload, kind)]
    chosen = [*ours_for(workload, kind), *by_hand, *peers_of(workload, kind)]
    return [peer for peer in chosen if peer.noise != "sketch"] if quick else chosen


def kind_of(workload: Workload) -> Kind:
    return "hessian" if workload.family == MLP else "ggn"


class Looks:
    """A colour a package, and markers that tell its methods apart."""

    def __init__(self) -> None:
        self.methods: dict[str, int] = {}

    def __call__(self, one: dict[str, Any]) -> tuple[str, str]:
        package = one["version"].split()[0]
        number = self.methods.setdefault(package, 0)
        self.methods[package] += 1
        return COLOURS[package], "osD^vP"[number % 6]


def draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = result["workloads"]
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure, axes = plt.subplots(
        lines, columns, figsize=(10 * columns, 6 * lines), squeeze=False, layout="constrained"
    )
    for axis, panel in zip(axes.flat, panels, strict=False):
        looks = Looks()
        for one in panel["curves"]:
            mine = one["method"].startswith("metacurv")
            colour, marker = looks(one)
            axis.loglog(
                [1e3 * p["seconds"] for p in one["points"]],
                [p["error"] for p in one["points"]],
                marker="*" if one["exact"] else marker,
                markersize=14 if one["exact"] else 7 if mine else 4,
                lw=2.5 if mine else 1,
                ls="-" if mine else "--",
                color=colour,
                zorder=3 if mine else 2,
                label=one["method"] + (" (exact)" if one["exact"] else ""),
            )
        axis.axhline(0.01, color="grey", lw=0.8, ls=":")
        axis.set_title(f"{panel['workload']}: {panel['kind']}")
        axis.set_xlabel("ms a reading")
        axis.set_ylabel("relative standard error")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    figure.suptitle("Error against time, one thread: lower left is better; stars are exact")
    figure.savefig(path, dpi=100)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="two repeats of each call, and no sketches"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=WORKLOADS,
        default=list(WORKLOADS),
        metavar="WORKLOAD",
        help=f"workloads to measure: {'; '.join(WORKLOADS)}",
    )
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder to write to")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    settle()
    result: dict[str, Any] = {"torch": torch.__version__, "workloads": []}
    for name in options.only:
        workload = WORKLOADS[name]()
        kind = kind_of(workload)
        curves = []
        for peer in (bar := tqdm(measured(workload, quick=options.quick), desc=name)):
            bar.set_postfix_str(peer.name)
            points = curve(peer, workload, kind, 2 if options.quick else 7)
            curves.append(
                {
                    "method": peer.name,
                    "version": version(peer),
                    "exact": peer.noise == "none",
                    "points": points,
                }
            )
        result["workloads"].append({"workload": name, "kind": kind, "curves": curves})
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "error_against_time.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.output / "error_against_time.png")
    print(f"written to {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How the cost of each way to a trace grows with width, depth, batch and classes, one at a time.

    python benchmarks/growth.py [--quick] [--only width ...]

Writes benchmarks/results/growth.json and growth.png, a panel an axis, each method's log-log slope in the legend. Inputs are
random numbers: the time does not depend on them. Methods that sample take one sample a call, so that the figure is the cost
of a sample. A method is given up on an axis where the next size would take too long or more memory than there is.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import resource
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.curvature_ours import OURS
from benchmarks.curvature_peers import NAMED
from benchmarks.curvature_workloads import MLP, SEED, Workload
from benchmarks.process import settle
from benchmarks.ratio import turn
from metacurv.experiment.model import mlp

HERE = Path(__file__).resolve().parent
AXES = {
    "width": (64, 128, 256, 512, 1024, 2048),
    "depth": (2, 4, 8, 16),
    "batch": (16, 64, 256, 1024),
    "classes": (10, 100, 1000, 10_000, 50_000),
}
BASE = {"width": 128, "depth": 2, "batch": 100, "classes": 10}
INPUTS = 40
METHODS = ("exact", "activation", "hutchinson", "finite_difference")
PEERS = (
    "plain loop",
    "vmap(jvp), GGN",
    "BackPACK DiagHessian",
    "BackPACK DiagGGNMC",
    "NNGeometry PMatImplicit",
)
GRADIENT = "one gradient"
# Beside what the process holds, for a call to fail with an error instead of taking the machine down.
MEMORY_SHARE = 0.8


def workload(width: int, depth: int, batch: int, classes: int) -> Workload:
    """A ReLU perceptron with ``depth`` hidden layers."""
    generator = torch.Generator().manual_seed(SEED)
    x = torch.randn(batch, INPUTS, generator=generator)
    y = torch.randint(classes, (batch,), generator=generator)
    model = mlp(INPUTS, (width,) * depth, classes, "relu", seed=SEED)
    name = f"width {width}, depth {depth}, batch {batch}, classes {classes}"
    return Workload(name, MLP, False, model, x, y, True, nn.CrossEntropyLoss())


def call_of(method: str, problem: Workload) -> Callable[[], object]:
    if method == GRADIENT:
        params = list(problem.model.parameters())
        return lambda: torch.autograd.grad(
            problem.loss(problem.model(problem.x), problem.y), params
        )
    if method in METHODS:
        return OURS[method, "hessian"].make(problem, 1)
    return NAMED[method].make(problem, 1)


def seconds_of(call: Callable[[], object], budget: float) -> float:
    """Median of at most 15 calls within ``budget`` seconds, at least one; the first call, which loads code, does not count."""
    call()
    once = turn(call, 1)
    repeats = min(15, int(budget / once.wall))
    if repeats < 1:
        return once.thread
    return statistics.median(turn(call, 1).thread for _ in range(repeats))


def measure(
    axis: str,
    sizes: Sequence[int],
    methods: Sequence[str],
    *,
    budget: float,
    limit: float,
    bar: Any,
) -> list[dict[str, Any]]:
    """One row a method: its points, and why it has no more of them."""
    rows = []
    for method in methods:
        points: list[dict[str, float]] = []
        stopped = ""
        for size in sizes:
            bar.set_postfix_str(f"{axis} {size}: {method}")
            bar.update()
            # With the steepest growth there is, the square of the size, how long would this one take?
            expected = points[-1]["seconds"] * (size / points[-1]["size"]) ** 2 if points else 0.0
            if stopped or expected > limit:
                stopped = stopped or f"{size} might take {expected:.0f} s"
                continue
            problem = workload(**{**BASE, axis: size})
            try:
                seconds = seconds_of(call_of(method, problem), budget)
            except (RuntimeError, MemoryError, ValueError) as error:
                stopped = f"{size}: {type(error).__name__}: {str(error).splitlines()[0][:120]}"
                continue
            finally:
                gc.collect()
            points.append({"size": size, "seconds": seconds})
        rows.append(
            {"method": method, "points": points, "slope": slope(points), "stopped": stopped}
        )
    return rows


def slope(points: Sequence[dict[str, float]]) -> float | None:
    """Of log seconds against log size, by least squares over the upper half of the points, where costs that do not grow
    have lost their weight."""
    upper = points[-max(2, math.ceil(len(points) / 2)) :]
    if len(upper) < 2:
        return None
    x = [math.log(p["size"]) for p in upper]
    y = [math.log(p["seconds"]) for p in upper]
    return statistics.linear_regression(x, y).slope


def draw(result: dict[str, Any], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = result["axes"]
    figure, axes = plt.subplots(
        1, len(panels), figsize=(5.2 * len(panels), 7.5), squeeze=False, layout="constrained"
    )
    colours = plt.get_cmap("tab20").colors
    for axis, (name, rows) in zip(axes[0], panels.items(), strict=True):
        for i, row in enumerate(rows):
            if not row["points"]:
                continue
            ours_or_unit = row["method"] in (*METHODS, GRADIENT)
            steep = "" if row["slope"] is None else f", slope {row['slope']:.2f}"
            axis.loglog(
                [p["size"] for p in row["points"]],
                [1e3 * p["seconds"] for p in row["points"]],
                marker="o" if ours_or_unit else "s",
                ls="-" if ours_or_unit else "--",
                color="black" if row["method"] == GRADIENT else colours[2 * i % 20],
                label=("metacurv " if row["method"] in METHODS else "") + row["method"] + steep,
            )
        fixed = ", ".join(f"{key} {value}" for key, value in BASE.items() if key != name)
        axis.set_xlabel(f"{name}   ({fixed})")
        axis.set_ylabel("ms a call")
        axis.grid(alpha=0.3)
        sizes = AXES[name]
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.minorticks_off()
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.12), frameon=False)
    figure.suptitle("Trace of a ReLU perceptron's Hessian\none sample a call, one thread")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="three sizes an axis, little time each"
    )
    parser.add_argument(
        "--only", nargs="+", choices=AXES, default=list(AXES), help="axes to measure"
    )
    parser.add_argument(
        "--limit",
        type=float,
        default=30.0,
        metavar="SECONDS",
        help="leave out what might take longer a call (default: 30)",
    )
    parser.add_argument("--output", type=Path, default=HERE / "results", help="folder to write to")
    return parser.parse_args(arguments)


def bound_memory() -> None:
    """Makes an allocation fail that the machine could not serve."""
    pages = {line.split(":")[0]: line for line in Path("/proc/meminfo").read_text().splitlines()}
    available = 1024 * int(pages["MemAvailable"].split()[1])
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    bound = held + int(MEMORY_SHARE * available)
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    settle()
    if sys.platform == "linux":
        bound_memory()
    budget, limit = (0.1, min(options.limit, 2.0)) if options.quick else (1.0, options.limit)
    methods = (GRADIENT, *METHODS, *PEERS)
    chosen = {axis: AXES[axis][: 3 if options.quick else None] for axis in options.only}
    steps = sum(len(sizes) for sizes in chosen.values()) * len(methods)
    result: dict[str, Any] = {"torch": torch.__version__, "base": BASE, "axes": {}}
    with tqdm(total=steps) as bar:
        for axis, sizes in chosen.items():
            result["axes"][axis] = measure(
                axis, sizes, methods, budget=budget, limit=limit, bar=bar
            )
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "growth.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(result, options.output / "growth.png")
    for axis, rows in result["axes"].items():
        for row in rows:
            steep = "" if row["slope"] is None else f"slope {row['slope']:.2f}"
            print(f"{axis:8} {row['method']:26} {steep:12} {row['stopped']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

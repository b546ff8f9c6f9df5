"""Draws the trace of each layer of a transformer for docs/concepts/curvature.md: python docs/_site/traces_picture.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402
import torch  # noqa: E402

import metacurv  # noqa: E402
from benchmarks.curvature_workloads import transformer  # noqa: E402

PICTURE = ROOT / "docs" / "guide" / "traces.png"


def main() -> None:
    """Trains the character transformer of the benchmarks, measures it, and draws."""
    mpl.use("Agg")
    torch.set_num_threads(1)
    work = transformer()
    estimate = metacurv.estimate_trace(work.model, work.loss, work.x, work.y, rtol=0.02)
    estimate.plot().figure.savefig(PICTURE, dpi=110)
    print(f"{PICTURE}: {estimate}")
    for layer, part in estimate.per_layer.items():
        error = estimate.per_layer_stderr[layer]
        print(f"{layer}: {part:.2f} +- {error:.2f}, {part / estimate.value:.1%}")


if __name__ == "__main__":
    main()

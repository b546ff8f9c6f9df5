"""Draws the spectral density of a trained perceptron for docs/guide/spectrum.md: python docs/_site/density_picture.py"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import matplotlib as mpl  # noqa: E402

import metacurv  # noqa: E402
from benchmarks.curvature_workloads import perceptron  # noqa: E402

PICTURE = ROOT / "docs" / "guide" / "density.png"


def main() -> None:
    """Trains the perceptron of the benchmarks, and draws."""
    mpl.use("Agg")
    work = perceptron("tanh", True)
    density = metacurv.spectral_density(work.model, work.loss, work.x, work.y, steps=100)
    axes = density.plot()
    axes.set_title(f"Hessian of a trained perceptron, {density.n} eigenvalues")
    axes.figure.savefig(PICTURE, dpi=110)
    print(f"{PICTURE}: {density}")


if __name__ == "__main__":
    main()

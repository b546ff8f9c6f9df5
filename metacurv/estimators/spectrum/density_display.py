"""The picture of a spectral density."""

from __future__ import annotations

from typing import TYPE_CHECKING

from metacurv.estimators.problem.trace_display import MATRICES, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from metacurv.estimators.spectrum.density import SpectralDensity

_LINE, _MARK = "#0072B2", "#D55E00"
_DECADES = 6  # shown below the highest point
_MOST_MARKS = 200


def draw(density: SpectralDensity, ax: Axes | None) -> Axes:
    """Draws the density with its band on a logarithmic scale, and ticks below it for eigenvalues that are known."""
    if ax is None:
        ax = new_axes((7, 3.6))
    top = float(density.density.max())
    floor = top / 10**_DECADES
    grid = density.grid.tolist()
    ax.plot(grid, density.density.clamp(min=floor).tolist(), color=_LINE, linewidth=1.2)
    if density.eigenvalues is None and density.n_samples > 1:
        low, high = density.lower.clamp(min=floor), density.upper.clamp(min=floor)
        label = f"95 % band over {density.n_samples} probes"
        ax.fill_between(grid, low.tolist(), high.tolist(), color=_LINE, alpha=0.25, label=label)
        ax.legend(loc="upper right", frameon=False)
    elif density.eigenvalues is not None:
        marks = density.eigenvalues[:_MOST_MARKS].tolist()
        label = "eigenvalues" if len(density.eigenvalues) <= _MOST_MARKS else "largest eigenvalues"
        ax.plot(marks, [1.6 * floor] * len(marks), "|", color=_MARK, label=label)
        ax.legend(loc="upper right", frameon=False)
    ax.set_yscale("log")
    ax.set_ylim(floor, 3 * top)
    ax.set_xlabel("eigenvalue")
    ax.set_ylabel("density")
    ax.set_title(f"spectrum of the {MATRICES.get(density.kind, density.kind)} ({density.method})")
    return ax

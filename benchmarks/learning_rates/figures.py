"""The picture rules.png: gains over the best of the grid; and what all pictures share."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from .labels import BEST_CONSTANT, BEST_OF_GRID
from .summary import Entry, TaskSummary, label

STYLE: Any = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}
# Okabe and Ito: told apart by any eye. Ours is the vermilion.
OURS, BASE, _OTHER = "#D55E00", "#0072B2", "#777777"
_COLUMNS = 4


def draw_gains(summaries: Sequence[TaskSummary]) -> bytes:
    """A panel a task: the paired gain over the best of the grid with its 95 % interval, in the unit of the result."""
    with rc_context(STYLE):
        columns = min(_COLUMNS, len(summaries))
        rows = math.ceil(len(summaries) / columns)
        longest = max(len(s.methods) for s in summaries) + 2
        figure = Figure(
            figsize=(4.1 * columns, (0.26 * longest + 0.9) * rows + 0.6),
            dpi=130,
            layout="constrained",
        )
        FigureCanvasAgg(figure)
        figure.suptitle(
            f"Gain over the {BEST_OF_GRID}, paired by seed: mean and 95 % interval. Right is better; an arrow means far left.",
            x=0.01,
            ha="left",
        )
        axes: Any = figure.subplots(rows, columns, squeeze=False)
        for place, axis in enumerate(axes.flat):
            if place < len(summaries):
                _panel(axis, summaries[place])
            else:
                axis.set_axis_off()
        return as_png(figure)


def _panel(axis: Any, summary: TaskSummary) -> None:
    shown = [
        (summary.adam, label(summary.task, summary.adam)),
        (summary.best_constant, BEST_CONSTANT),
    ]
    # Ours above the others.
    by_name = sorted(summary.methods, key=lambda e: (_rank(e.name), e.name))
    shown += [(entry, label(summary.task, entry)) for entry in by_name]
    span = _span(summary, [entry for entry, _ in shown])
    for y, (entry, name) in enumerate(reversed(shown)):
        gain = summary.gain(entry, summary.best_of_grid)
        colour = OURS if name.startswith("directional") else BASE if y >= len(shown) - 2 else _OTHER
        if gain.mean < -span:  # far off to the left: an arrow, and the number
            axis.annotate(
                f"{gain.mean:.3g}", (-span, y), xytext=(-0.72 * span, y), va="center", size=8, color=colour,
                arrowprops={"arrowstyle": "->", "color": colour},
            )  # fmt: skip
            continue
        axis.plot([max(gain.low, -span), min(gain.high, span)], [y, y], color=colour, lw=1.6)
        axis.plot([gain.mean], [y], "o", color=colour, ms=4.5)
        for limit, end, marker in ((-gain.low, -span, "<"), (gain.high, span, ">")):
            if limit > span:  # the interval goes on
                axis.plot([end], [y], marker, color=colour, ms=5)
    axis.axvline(0, color="#333333", lw=1)
    axis.set_xlim(-span * 1.04, span * 1.04)
    axis.set_ylim(-0.6, len(shown) - 0.4)
    axis.set_yticks(range(len(shown)), [name for _, name in reversed(shown)], fontsize=8.5)
    axis.grid(axis="y", visible=False)
    axis.set_title(f"{summary.task.name} ({summary.task.unit})")


def _rank(name: str) -> int:
    return 0 if name.startswith("directional") else 1 if name == "reciprocal" else 2


def _span(summary: TaskSummary, entries: Sequence[Entry]) -> float:
    """Wide enough for the better half of what is shown."""
    gains = [summary.gain(entry, summary.best_of_grid) for entry in entries]
    reach = sorted(max(abs(g.low), abs(g.high)) for g in gains if math.isfinite(g.low))
    return 1.3 * reach[len(reach) // 2] if reach and reach[len(reach) // 2] > 0 else 1.0


def errorbar(axis: Any, label: str, by_value: Mapping[float, Sequence[float]], colour: str) -> Any:
    """Draws mean and standard error over seeds. Returns: what a legend needs."""
    values = sorted(by_value)
    results = [np.asarray(by_value[value], dtype=float) for value in values]
    errors = [float(r.std(ddof=1)) / math.sqrt(len(r)) if len(r) > 1 else 0.0 for r in results]
    means = [float(r.mean()) for r in results]
    return axis.errorbar(values, means, errors, label=label, marker="o", ms=4, lw=1.8, color=colour)


def as_png(figure: Figure) -> bytes:
    """Returns the finished picture."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()

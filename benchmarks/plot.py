"""The table as a picture: each ratio with its interval, beside what is required."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.table import Row, number

# Okabe and Ito's colours, which colour-blind readers can tell apart; shapes say the same.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the picture of all measured rows to ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    measured = [row for row in rows if row.measured is not None]
    faster = [row for row in measured if row.line.kind == "faster"]
    least = [row for row in measured if row.line.kind != "faster"]
    figure, axes = plt.subplots(
        2,
        1,
        figsize=(9, 1.6 + 0.45 * len(measured)),
        height_ratios=[max(1, len(faster)), max(1, len(least))],
        layout="constrained",
    )
    _panel(axes[0], faster, "metacurv is ... times faster (further right is better)")
    axes[0].set_xscale("log")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axes[0].set_xticks(ticks, [f"{tick} ×" for tick in ticks])
    axes[0].minorticks_off()
    _panel(
        axes[1], least, "metacurv needs ... times as much, or copies (further left is better)"
    )
    axes[1].set_xlim(left=min([0, *(1.1 * row.measured.value for row in least if row.measured)]))
    handles = [
        plt.Line2D([], [], color=BLUE, marker="o", label="measured, 95 % interval"),
        plt.Line2D([], [], color=ORANGE, marker="X", label="measured, not as required"),
        plt.Line2D([], [], color="black", marker="|", markersize=14, ls="", label="required"),
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def _panel(axis: Any, rows: Sequence[Row], label: str) -> None:
    for height, row in enumerate(reversed(rows)):
        assert row.measured is not None
        value, bound = row.measured.value, row.line.bound
        low, high = row.measured.interval or (value, value)
        colour = BLUE if row.met else ORANGE
        axis.plot([bound, value], [height, height], color=GREY, lw=1, ls=":", zorder=1)
        axis.plot([low, high], [height, height], color=colour, lw=3)
        axis.plot(value, height, marker="o" if row.met else "X", color=colour, markersize=8)
        axis.plot(bound, height, marker="|", color="black", markersize=18, mew=2)
        axis.annotate(
            number(value),
            (value, height),
            xytext=(0, 8),
            textcoords="offset points",
            ha="center",
            fontsize=8,
            color=colour,
        )
    axis.set_yticks(
        range(len(rows)),
        [f"{row.line.text}\nagainst {row.line.other}".replace("`", "") for row in reversed(rows)],
        fontsize=8,
    )
    axis.set_ylim(-0.6, len(rows) - 0.3)
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)

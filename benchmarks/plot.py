"""The table as a picture: each ratio with its interval, beside what was promised."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.lines import Kind
from benchmarks.table import Row, number

# Okabe and Ito's colours, which colour-blind readers can tell apart; shapes say the same.
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"

PANELS: dict[Kind, str] = {
    "faster": "metacurv is ... times as fast (further right is better)",
    "time": "metacurv takes ... times as long (further left is better)",
    "copies": "metacurv holds ... copies of the parameters more (further left is better)",
}


def draw(rows: Sequence[Row], path: Path) -> None:
    """Writes the picture of all measured rows to ``path``."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.lines import Line2D

    measured = [row for row in rows if row.measured is not None]
    panels = {kind: [row for row in measured if row.line.kind == kind] for kind in PANELS}
    panels = {kind: chosen for kind, chosen in panels.items() if chosen}
    figure, axes = plt.subplots(
        max(1, len(panels)),
        1,
        figsize=(9, 1 + 0.5 * len(measured) + 0.7 * len(panels)),
        height_ratios=[len(chosen) for chosen in panels.values()] or [1],
        squeeze=False,
        layout="constrained",
    )
    for axis, (kind, chosen) in zip(axes[:, 0], panels.items(), strict=False):
        _panel(axis, chosen, PANELS[kind])
        if kind == "faster":
            _ratio_scale(axis)
        else:
            axis.set_xlim(left=min(0.0, 1.1 * axis.get_xlim()[0]))
    handles = [
        Line2D([], [], color=BLUE, marker="o", label="measured, 95 % interval"),
        Line2D([], [], color=ORANGE, marker="X", label="measured, promise not kept"),
        Line2D([], [], color="black", marker="|", markersize=14, ls="", label="promised"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    figure.suptitle("metacurv against others, one thread: each promise and what was measured")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _panel(axis: Any, rows: Sequence[Row], label: str) -> None:
    for height, row in enumerate(reversed(rows)):
        assert row.measured is not None
        value, bound = row.measured.value, row.line.bound
        low, high = row.measured.interval or (value, value)
        colour = BLUE if row.kept else ORANGE
        axis.plot([bound, value], [height, height], color=GREY, lw=1, ls=":", zorder=1)
        axis.plot([low, high], [height, height], color=colour, lw=3)
        axis.plot(value, height, marker="o" if row.kept else "X", color=colour, markersize=8)
        axis.plot(bound, height, marker="|", color="black", markersize=18, mew=2)
        axis.annotate(
            f"{number(value)}  ({'≥' if row.line.kind == 'faster' else '≤'} {bound:g})",
            (1.01, height),
            xycoords=("axes fraction", "data"),
            va="center",
            fontsize=8,
            color=colour,
        )
    axis.set_yticks(
        range(len(rows)),
        [f"{row.line.text}\nagainst {row.line.other}".replace("`", "") for row in reversed(rows)],
        fontsize=8,
    )
    axis.set_ylim(-0.6, len(rows) - 0.4)
    axis.set_xlabel(label)
    axis.grid(axis="x", alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def _ratio_scale(axis: Any) -> None:
    axis.set_xscale("log")
    low, high = axis.get_xlim()
    mantissas = (1, 2, 5) if high / low < 100 else (1,)  # which would run into each other
    ticks = [m * 10**e for e in range(-1, 6) for m in mantissas if low <= m * 10**e <= high]
    axis.set_xticks(ticks, [f"{tick:g} ×" for tick in ticks])
    axis.minorticks_off()

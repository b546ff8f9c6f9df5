"""The picture sensitivity.png: the base optimizer has a peak over the rate that one gives it, the directional rule a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from .figures import BASE, OURS, STYLE, as_png, errorbar
from .task import Task
from .tasks import TASKS

# The picture is made to be read 800 pixels wide.
_WIDTH, _ROW, _HEAD, _DPI = 8.0, 2.5, 0.75, 200
_COLUMNS = 2
_TITLES = {
    "mlp-relu": "mnist1d, ReLU network",
    "friedman": "Friedman regression, ReLU network",
    "digits-mlp": "Digits of 8 × 8 pixels, ReLU network",
    "conv": "mnist1d, convolutional network",
}
_MEASURES = {
    "accuracy": "test accuracy, %",
    "mse": "test error, MSE × 1000\n(lower is better)",
    "loss": "test loss, nats\n(lower is better)",
}
ByRate = Mapping[float, Sequence[float]]  # learning rate -> one result a seed


def draw(results: Mapping[str, tuple[ByRate, ByRate]]) -> bytes:
    """Draws the panels; ``results`` maps a task to the results of the base optimizer and of the directional rule."""
    style = {**STYLE, "axes.titlesize": 10.5, "axes.labelsize": 9.5}
    with rc_context(style):
        columns = min(_COLUMNS, len(results))
        rows = -(-len(results) // columns)
        height = _HEAD + _ROW * rows
        below_the_head = ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - _HEAD / height), hspace=0.08)
        figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, layout=below_the_head)
        FigureCanvasAgg(figure)
        axes: Any = figure.subplots(rows, columns, squeeze=False)
        handles = [
            _panel(axis, TASKS[name], base, ours)
            for axis, (name, (base, ours)) in zip(axes.flat, results.items(), strict=False)
        ]
        for axis in axes[-1]:
            axis.set_xlabel("learning rate you give")
        for axis in list(axes.flat)[len(results) :]:
            axis.set_axis_off()
        _head(figure, height, handles[0], results)
        return as_png(figure)


def _panel(axis: Any, task: Task, base: ByRate, ours: ByRate) -> list[Any]:
    """Draws one task. Returns: what the legend names, in its order."""
    bases = errorbar(axis, f"{task.base_name} at this learning rate", base, BASE)
    means = {rate: float(np.mean(values)) for rate, values in base.items()}
    best = (max if task.higher_is_better else min)(means, key=means.__getitem__)
    (ring,) = axis.plot(
        [best], [means[best]], "o", ms=11, mfc="none", mec=BASE, mew=1.6,
        label="best of these rates",
    )  # fmt: skip
    line = errorbar(axis, f"MetaCurvatureLR({task.base_name}), any learning rate", ours, OURS)
    # The base falls off on both sides of its best, and is far from ours at the smallest rate.
    outwards = 1 if task.higher_is_better else -1
    _number(axis, best, means[best], (4, -11 * outwards), "right", BASE)
    first = min(ours)
    _number(axis, first, float(np.mean(ours[first])), (-4, 6 * outwards), "left", OURS)
    axis.set_xscale("log")
    axis.minorticks_off()
    if not task.higher_is_better:
        axis.set_yscale("log")
    axis.margins(y=0.2)
    axis.set_title(_TITLES.get(task.name, task.name))
    axis.set_ylabel(_MEASURES[task.measure])
    return [bases, ring, line]


def _number(
    axis: Any, x: float, y: float, offset: tuple[float, float], align: str, colour: str
) -> None:
    """The result at a point, ``offset`` points away from it."""
    axis.annotate(
        f"{y:.1f}", (x, y), xytext=offset, textcoords="offset points", color=colour, size=9.5,
        weight="bold", ha=align, va="bottom" if offset[1] > 0 else "top",
    )  # fmt: skip


def _head(figure: Figure, height: float, handles: list[Any], results: Mapping[str, Any]) -> None:
    """Writes what is drawn, and the one legend, above all panels."""
    counts = {len(values) for pair in results.values() for by in pair for values in by.values()}
    seeds = f"mean ± standard error of {'–'.join(map(str, sorted(counts)))} seeds"
    figure.text(
        0.012,
        1 - 0.08 / height,
        f"How well a training ends, by the learning rate that you give it ({seeds})",
        va="top",
        size=10.5,
    )
    figure.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.0, 1 - 0.32 / height),
        ncols=3,
        frameon=False,
        fontsize=9.5,
        columnspacing=1.2,
        handletextpad=0.5,
    )

"""The picture loss_comparison.png: the course of the losses, the learning rate and the trace."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from .config import Config, Method
from .data import N_CLASSES, N_FEATURES
from .results import Array, Curves

_ADAM = "#0072B2"  # Okabe and Ito's blue
# From small alpha to large, told apart by lightness alone, and from the blue by any eye.
_ALPHAS = ("#F2B134", "#E07B1A", "#C03A2B", "#6E1423")
_ONE_ALPHA = "#D55E00"  # Okabe and Ito's vermilion
_DIRECTIONAL = "#009E73"  # their bluish green
_BODY, _LEGEND_ROW = 12.1, 0.22  # inches
_LEGEND_COLUMNS = 4  # of the longest labels, which fit
_TITLE: dict[str, Any] = {"size": 15, "weight": "bold"}
_STYLE: Any = {  # matplotlib types the keys as literals, in its later releases only
    "font.size": 10.5,
    "axes.titlesize": 11.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.color": "#E6E6E6",
    "xtick.color": "#888888",
    "ytick.color": "#888888",
    "xtick.labelcolor": "#333333",
    "ytick.labelcolor": "#333333",
    "lines.linewidth": 1.8,
    "legend.fontsize": 11,
}


def draw(config: Config, curves: Sequence[Curves]) -> bytes:
    """The picture as PNG: medians over seeds as lines, quartiles as bands; Adam comes first."""
    with rc_context(_STYLE):
        head_height = 0.65 + _LEGEND_ROW * _legend_rows(curves)
        figure = Figure(figsize=(10, _BODY + head_height), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)  # without pyplot: no global state, no display
        panes: Any = figure.subfigures(2, 1, height_ratios=(head_height, _BODY))
        head, body = panes
        (accuracy, accuracy_time), (train, train_time), (test, test_time), (rate, trace) = (
            body.subplots(4, 2)
        )
        accuracy_time.sharey(accuracy)
        train_time.sharey(train)
        test_time.sharey(test)
        for entry, colour in zip(curves, _colours([entry.method for entry in curves]), strict=True):
            _band(accuracy, entry.steps, 100 * entry.test_acc, entry, colour)
            _band(accuracy_time, *_against_seconds(entry, 100 * entry.test_acc), entry, colour)
            _band(train, entry.steps, entry.train_loss, entry, colour)
            _band(train_time, *_against_seconds(entry, entry.train_loss), entry, colour)
            _band(test, entry.steps, entry.test_loss, entry, colour)
            _band(test_time, *_against_seconds(entry, entry.test_loss), entry, colour)
            _band(rate, entry.steps, entry.lr, entry, colour)
            _band(trace, entry.steps, entry.trace, entry, colour)
        _dress(accuracy, "Test accuracy", "correct (%)", "training step")
        _dress(accuracy_time, "Test accuracy, against time", "", "training time (s)")
        _dress(train, "Train loss", "cross-entropy (nats)", "training step", log=True)
        _dress(train_time, "Train loss, against time", "", "training time (s)", log=True)
        _dress(test, "Test loss", "cross-entropy (nats)", "training step")
        _dress(test_time, "Test loss, against time", "", "training time (s)")
        _dress(rate, "Learning rate, as applied", "learning rate", "training step", log=True)
        _dress(
            trace, "Trace of the Hessian, as measured", "trace (nats / weight²)", "training step"
        )
        accuracy_time.tick_params(labelleft=False)
        train_time.tick_params(labelleft=False)
        test_time.tick_params(labelleft=False)
        body.align_ylabels()
        _head(head, head_height, config, train)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _colours(methods: Sequence[Method]) -> list[str]:
    """Adam's colour, the directional rule's, and one an alpha, spread from light to dark."""
    n_alphas = sum(method.alpha is not None for method in methods)
    places = np.linspace(0, len(_ALPHAS) - 1, n_alphas)
    alphas = iter([_ONE_ALPHA] if n_alphas == 1 else [_ALPHAS[round(place)] for place in places])
    return [
        _DIRECTIONAL if method.is_directional else _ADAM if method.alpha is None else next(alphas)
        for method in methods
    ]


def _against_seconds(curves: Curves, values: Array) -> tuple[Array, Array]:
    """Common times and the values [S, E] at them, each seed being read off on its own clock.

    The times end when half of the seeds have: later, too few would be left.
    """
    times = np.linspace(0, np.median(curves.total_seconds), max(len(curves.steps), 50))
    clocks = zip(curves.seconds, values, strict=True)
    return times, np.array([np.interp(times, clock, seed) for clock, seed in clocks])


def _band(axes: Axes, x: Array, values: Array, curves: Curves, colour: str) -> None:
    """Median and quartiles of values [S, E] over x [E], but where every seed is nan."""
    known = ~np.isnan(values).all(axis=0)
    low, middle, high = np.nanpercentile(values[:, known], (25, 50, 75), axis=0)
    order = 3 if curves.method.alpha is None else 2
    axes.fill_between(x[known], low, high, color=colour, alpha=0.2, linewidth=0, zorder=order)
    axes.plot(x[known], middle, color=colour, label=curves.method.label, zorder=order)


def _dress(axes: Axes, title: str, y_label: str, x_label: str, *, log: bool = False) -> None:
    axes.set(title=title, ylabel=y_label, xlabel=x_label)
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    if not log:
        return
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high < 200 * low:  # powers of ten alone would be one or two ticks
        subs = (1.0, 2.0, 3.0, 5.0, 7.0) if high < 10 * low else (1.0, 2.0, 5.0)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _legend_rows(labels: Sequence[object]) -> int:
    return -(-len(labels) // _LEGEND_COLUMNS)


def _head(head: SubFigure, height: float, config: Config, labelled: Axes) -> None:
    """Title, setting and the one legend."""
    layers = "-".join(map(str, (N_FEATURES, *config.hidden, N_CLASSES)))
    probes = f"{config.n_hutchinson_samples} probe{'s' * (config.n_hutchinson_samples > 1)}"
    quick = " (quick run)" if config.quick else ""
    setting = (
        f"MLP {layers} {config.activation}, batch {config.batch_size}, learning rate {config.lr:g}, "
        f"trace every {config.update_freq} steps from {probes}; "
        f"median and quartiles of {config.seeds} seed{'s' * (config.seeds > 1)}"
    )
    head.text(
        0.012,
        1 - 0.09 / height,
        f"Adam and MetaCurvatureLR(Adam) on mnist1d{quick}",
        va="top",
        **_TITLE,
    )
    head.text(0.012, 1 - 0.43 / height, setting, va="top", size=10, color="#555555")
    handles, labels = labelled.get_legend_handles_labels()
    rows = _legend_rows(labels)
    head.legend(
        handles,
        labels,
        loc="upper left",
        bbox_to_anchor=(0, 1 - 0.6 / height),
        ncols=-(-len(labels) // rows),
        fontsize=10,
        columnspacing=1.1,
        handlelength=1.4,
        frameon=False,
    )

"""The display of a ``TraceEstimate``: a table for notebooks and a bar chart.

Both show the parts of the trace, by layer where the estimate has layers and by parameter otherwise. A long model is cut to
its largest parts; the others are added up in one row, so that what is shown still adds up to the trace.
"""

from __future__ import annotations

import html
import math
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from metacurv.estimators.problem.results import TraceEstimate

TABLE_ROWS = 12
BARS = 20
_LONGEST_LABEL = 40  # characters beside a bar
MATRICES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}
_BAR, _REST = "#0072B2", "#9BBFD6"
# The notebook sets the colours of text and background, light or dark; the lines are grey on either.
_TABLE = 'style="border-collapse: collapse; margin: 0 0 0.6em 0; color: inherit;"'
_LEFT = "text-align: left; padding: 0.15em 1.2em 0.15em 0; vertical-align: top;"
_RIGHT = "text-align: right; padding: 0.15em 1.2em 0.15em 0; font-variant-numeric: tabular-nums;"
_LINE = "border-bottom: 1px solid rgba(128, 128, 128, 0.5);"
_WHY = f"{_LEFT} max-width: 44em; white-space: normal;"


class Part(NamedTuple):
    """One row or bar. ``stderr``: nan where it is not known."""

    name: str
    value: float
    stderr: float
    is_rest: bool = False


def is_exact(estimate: TraceEstimate) -> bool:
    """Tells whether nothing was sampled."""
    return estimate.n_samples == 0 and estimate.stderr == 0


def _parts(estimate: TraceEstimate, most: int) -> tuple[str, list[Part]]:
    """Returns what the parts are, "layer" or "parameter", and at most ``most`` of them in the model's order.

    The last one stands for all that were left out. Their errors are not independent, so their sum has no error.
    """
    noun, values, errors = "layer", estimate.per_layer, estimate.per_layer_stderr
    if not values:
        noun, values, errors = "parameter", estimate.per_parameter, estimate.per_parameter_stderr
    largest = set(values)
    if len(values) > most:
        by_size = sorted(values, key=lambda name: abs(values[name]), reverse=True)
        largest = set(by_size[: most - 1])
    shown = [name for name in values if name in largest]
    found = [Part(name or "(the model itself)", values[name], errors[name]) for name in shown]
    if left := values.keys() - largest:
        rest = math.fsum(values[name] for name in left)
        found.append(Part(f"{len(left)} other {noun}s", rest, math.nan, is_rest=True))
    return noun, found


def as_html(estimate: TraceEstimate) -> str:
    """Returns two tables: the estimate, and its parts. It is plain HTML without scripts, classes or outside resources."""

    def error_text(stderr: float, unknown: str = "unknown") -> str:
        if is_exact(estimate):
            return "exact"
        return unknown if math.isnan(stderr) else f"{stderr:.2g}"

    rows = {
        "matrix": _matrix(estimate),
        "trace": f"{estimate.value:.6g}",
        "standard error": error_text(estimate.stderr),
        "method": estimate.method,
        "samples": str(estimate.n_samples),
    }
    if estimate.why:
        rows["why this method"] = estimate.why
    if not estimate.converged:
        rows["note"] = "the standard error that was asked for was not reached"
    noun, found = _parts(estimate, TABLE_ROWS)
    lines = [f"<table {_TABLE}>"]
    for name, text in rows.items():
        cell = f'<td style="{_WHY}">{html.escape(text)}</td>'
        lines.append(f'<tr><th style="{_LEFT}">{name}</th>{cell}</tr>')
    lines += [
        "</table>",
        f"<table {_TABLE}>",
        f'<tr><th style="{_LEFT}{_LINE}">{noun}</th><th style="{_RIGHT}{_LINE}">trace</th>'
        f'<th style="{_RIGHT}{_LINE}">standard error</th></tr>',
    ]
    for part in found:
        name = html.escape(part.name)
        error = error_text(part.stderr, "" if part.is_rest else "unknown")
        lines.append(
            f'<tr><td style="{_LEFT}">{f"<em>{name}</em>" if part.is_rest else name}</td>'
            f'<td style="{_RIGHT}">{part.value:.6g}</td><td style="{_RIGHT}">{error}</td></tr>'
        )
    return "\n".join([*lines, "</table>"])


def _matrix(estimate: TraceEstimate) -> str:
    return MATRICES.get(estimate.kind, estimate.kind)


def new_axes(size: tuple[float, float]) -> Axes:
    """Returns the axes of a new figure, ``size`` in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib, which is not installed; install it with "
            '`pip install matplotlib` or `pip install "metacurv[experiment]"`'
        ) from error
    return pyplot.subplots(figsize=size, layout="constrained")[1]


def draw(estimate: TraceEstimate, ax: Axes | None) -> Axes:
    """Draws a bar a part, from the model's first layer at the top to its last; lines at their ends are standard errors."""
    noun, found = _parts(estimate, BARS)
    if ax is None:
        ax = new_axes((7, 1.3 + 0.3 * len(found)))
    places = range(len(found))
    colors = [_REST if part.is_rest else _BAR for part in found]
    ax.barh(places, [part.value for part in found], color=colors)
    known = [(place, part) for place, part in zip(places, found, strict=True) if part.stderr > 0]
    ax.errorbar(
        [part.value for _, part in known],
        [place for place, _ in known],
        xerr=[part.stderr for _, part in known],
        fmt="none",
        ecolor="#D55E00",
        capsize=3,
    )
    ax.axvline(0, color="#888888", linewidth=0.8)
    ax.set_yticks(places, [_label(part.name) for part in found])
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlabel("trace, with standard errors" if known else "trace")
    ax.set_ylabel(noun)
    how = "exact" if is_exact(estimate) else f"± {estimate.stderr:.2g}"
    if estimate.n_samples == 1:
        how = "from one sample, which leaves its error unknown"
    ax.set_title(f"trace of the {_matrix(estimate)}: {estimate.value:.4g} {how}")
    return ax


def _label(name: str) -> str:
    """Returns the end of a long name, which tells it apart; a dollar sign would begin a formula."""
    short = name if len(name) <= _LONGEST_LABEL else f"…{name[1 - _LONGEST_LABEL :]}"
    return short.replace("$", r"\$")

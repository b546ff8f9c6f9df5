"""The display of a ``TraceEstimate``: a table for notebooks and a bar chart.

Both show the parts of the trace, by layer where the estimate has layers and by parameter otherwise. A long model is cut to
its largest parts; the others are added up in one row, so that what is shown still adds up to the trace.
"""

from __future__ import annotations

import html
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from metacurv.estimators.problem.trace_estimate import TraceEstimate

TABLE_ROWS = 12
BARS = 20
_LONGEST_LABEL = 40  # characters beside a bar
_MATRICES = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}
_BAR, _REST = "#0072B2", "#9BBFD6"
# The notebook sets the colours of text and background, light or dark; the lines are grey on either.
_TABLE = 'style="border-collapse: collapse; margin: 0 0 0.6em 0; color: inherit;"'
_LEFT = "text-align: left; padding: 0.15em 1.2em 0.15em 0; vertical-align: top;"
_RIGHT = "text-align: right; padding: 0.15em 1.2em 0.15em 0; font-variant-numeric: tabular-nums;"
_LINE = "border-bottom: 1px solid rgba(128, 128, 128, 0.5);"
_WHY = f"{_LEFT} max-width: 44em; white-space: normal;"


@dataclass(frozen=True)
class Part:
    """One row or bar. ``stderr``: None where it is not known."""

    name: str
    value: float
    stderr: float | None
    is_rest: bool = False


def is_exact(estimate: TraceEstimate) -> bool:
    """Tells whether nothing was sampled."""
    return estimate.n_samples == 0 and estimate.stderr == 0


def parts(estimate: TraceEstimate, most: int) -> tuple[str, list[Part]]:
    """Returns what the parts are, "layer" or "parameter", and at most ``most`` of them in the model's order.

    The last one stands for all that were left out. Their errors are not independent, so their sum has no error.
    """
    noun, values, errors = "layer", estimate.per_layer, estimate.per_layer_stderr
    if not values:
        noun, values, errors = "parameter", estimate.per_parameter, estimate.per_parameter_stderr
    shown = list(values)
    if len(shown) > most:
        largest = sorted(shown, key=lambda name: abs(values[name]), reverse=True)[: most - 1]
        shown = [name for name in shown if name in set(largest)]
    found = [
        Part(name or "(the model itself)", values[name], _known(errors[name])) for name in shown
    ]
    if left := values.keys() - set(shown):
        rest = math.fsum(values[name] for name in left)
        found.append(Part(f"{len(left)} other {noun}s", rest, None, is_rest=True))
    return noun, found


def _known(error: float) -> float | None:
    return None if math.isnan(error) else error


def as_html(estimate: TraceEstimate) -> str:
    """Two tables: the estimate, and its parts. Plain HTML without scripts, classes or outside resources."""
    rows = {
        "matrix": _matrix(estimate),
        "trace": f"{estimate.value:.6g}",
        "standard error": _error(estimate, _known(estimate.stderr)),
        "method": estimate.method,
        "samples": str(estimate.n_samples),
    }
    if estimate.why:
        rows["why this method"] = estimate.why
    if not estimate.converged:
        rows["note"] = "the standard error that was asked for was not reached"
    lines = [f"<table {_TABLE}>"]
    lines += [
        f'<tr><th style="{_LEFT}">{name}</th><td style="{_WHY}">{html.escape(text)}</td></tr>'
        for name, text in rows.items()
    ]
    lines.append("</table>")
    noun, found = parts(estimate, TABLE_ROWS)
    lines += [
        f"<table {_TABLE}>",
        f'<tr><th style="{_LEFT}{_LINE}">{noun}</th><th style="{_RIGHT}{_LINE}">trace</th>'
        f'<th style="{_RIGHT}{_LINE}">standard error</th></tr>',
        *(_row(estimate, part) for part in found),
        "</table>",
    ]
    return "\n".join(lines)


def _matrix(estimate: TraceEstimate) -> str:
    return _MATRICES.get(estimate.kind, estimate.kind)


def _error(estimate: TraceEstimate, error: float | None) -> str:
    if is_exact(estimate):
        return "exact"
    return "unknown" if error is None else f"{error:.2g}"


def _row(estimate: TraceEstimate, part: Part) -> str:
    name, error = html.escape(part.name), _error(estimate, part.stderr)
    if part.is_rest:
        name = f"<em>{name}</em>"
        error = "exact" if is_exact(estimate) else ""
    return (
        f'<tr><td style="{_LEFT}">{name}</td><td style="{_RIGHT}">{part.value:.6g}</td>'
        f'<td style="{_RIGHT}">{error}</td></tr>'
    )


def draw(estimate: TraceEstimate, ax: Axes | None) -> Axes:
    """A bar a part, from the model's first layer at the top to its last; lines at their ends are standard errors."""
    noun, found = parts(estimate, BARS)
    if ax is None:
        ax = _new_axes(len(found))
    places = range(len(found))
    ax.barh(
        places,
        [part.value for part in found],
        color=[_REST if part.is_rest else _BAR for part in found],
    )
    known = [(place, part) for place, part in zip(places, found, strict=True) if part.stderr]
    ax.errorbar(
        [part.value for _, part in known],
        [place for place, _ in known],
        xerr=[part.stderr or 0.0 for _, part in known],
        fmt="none",
        ecolor="#D55E00",
        capsize=3,
    )
    ax.axvline(0, color="#888888", linewidth=0.8)
    ax.set_yticks(places, [_label(part.name) for part in found])
    ax.set_ylim(len(found) - 0.4, -0.6)
    ax.set_xlabel("trace, with standard errors" if known else "trace")
    ax.set_ylabel(noun)
    ax.set_title(_title(estimate))
    return ax


def _new_axes(bars: int) -> Axes:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError(
            "plot needs matplotlib, which is not installed; install it with "
            '`pip install matplotlib` or `pip install "metacurv[experiment]"`'
        ) from error
    _, ax = pyplot.subplots(figsize=(7, 1.3 + 0.3 * bars), layout="constrained")
    return ax


def _label(name: str) -> str:
    """The end of a long name, which tells it apart; a dollar sign would begin a formula."""
    short = name if len(name) <= _LONGEST_LABEL else f"…{name[1 - _LONGEST_LABEL :]}"
    return short.replace("$", r"\$")


def _title(estimate: TraceEstimate) -> str:
    how = "exact" if is_exact(estimate) else f"± {estimate.stderr:.2g}"
    if estimate.n_samples == 1:
        how = "from one sample, which leaves its error unknown"
    return f"trace of the {_matrix(estimate)}: {estimate.value:.4g} {how}"

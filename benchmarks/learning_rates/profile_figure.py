"""The picture profile.png: a performance profile, one curve a method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from . import labels
from .figures import BASE, OURS, STYLE, as_png

# Of many methods those that a user may choose between: more curves cannot be told apart.
_SHOWN = (
    "directional",
    "directional, no horizon",
    f"{labels.BEST_OF_GRID}, tuned on the task",
    f"{labels.BEST_CONSTANT}, tuned on the task",
    labels.CARRIED_OVER,
    labels.ANY_BASE,
    "prodigy cosine",
    "prodigy-plus-schedule-free",
    "schedule-free 0.01",
    "searched",
)
_LARGEST = 3.0  # factor; beyond it all that is left has failed
# Told apart from ours and the base's by any eye, and by their dashes from each other.
_OTHERS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#777777")
_DASHES = ("-", "--", ":", "-.")


def draw(factors: Mapping[str, Sequence[float]], tasks: int) -> bytes:
    """Draws those of ``_SHOWN`` among what ``profiles.factors`` gives of ``tasks`` tasks, the best first.

    The base's uses are blue, ours are vermilion.
    """
    factors = {name: rising for name, rising in factors.items() if name in _SHOWN} or factors
    with rc_context(STYLE):
        figure = Figure(figsize=(8.0, 4.6), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        axis: Any = figure.subplots()
        styles = _styles(list(factors))
        for method, rising in factors.items():
            axis.step(
                [1.0, *(min(factor, 2 * _LARGEST) for factor in rising), 2 * _LARGEST],
                [*(place / len(rising) for place in range(len(rising) + 1)), 1.0],
                where="post",
                label=method,
                **styles[method],
            )
        axis.set_xscale("log")
        axis.set_xlim(1.0, _LARGEST)
        ticks = [1, 1.1, 1.25, 1.5, 2, _LARGEST]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_ylim(0, 1.02)
        axis.set_xlabel("test error, times that of the best method on the task")
        axis.set_ylabel(f"fraction of the {tasks} tasks")
        axis.set_title("How often a method is nearly the best (higher is better)")
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
        return as_png(figure)


def _styles(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    ours = [name for name in methods if name.startswith("directional")]
    base = [
        name
        for name in methods
        if name.startswith(("base", labels.BEST_CONSTANT, labels.BEST_OF_GRID))
    ]
    styles = {}
    for colour, names, width in ((OURS, ours, 2.6), (BASE, base, 1.6)):
        for place, name in enumerate(names):
            styles[name] = {"color": colour, "ls": _DASHES[place % len(_DASHES)], "lw": width}
    for place, name in enumerate(name for name in methods if name not in styles):
        dashes = _DASHES[place // len(_OTHERS) % len(_DASHES)]
        styles[name] = {"color": _OTHERS[place % len(_OTHERS)], "ls": dashes, "lw": 1.3}
    return styles

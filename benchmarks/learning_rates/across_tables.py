"""The methods over all tasks as Markdown, and as plain numbers for a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from metacurv.experiment.statistics import Interval

from . import profiles
from .across import Row, behind
from .rates import Found
from .tables import row

_FACTORS = (1.1, 1.25, 2.0)
OURS = "directional"


def overall(rows: Sequence[Row]) -> str:
    """A row a method: how far it is from the oracle and from ours, and how often it is nearly the best."""
    ours = _ours(rows)
    rising = profiles.factors({each.name: each.ratios for each in rows})
    within = [f"within {round(100 * (x - 1))} %" if x < 2 else f"within {x:g} ×" for x in _FACTORS]
    head = [
        "method",
        "mean log ratio to the oracle",
        f"behind `{OURS}`",
        "largest",
        *within,
    ]
    lines = [row(head), "|" + "---|" * len(head)]
    for each in rows:
        gap = "" if ours is None or each is ours else interval(behind(each, ours), sign="+")
        shares = [f"{profiles.within(rising[each.name], x):.2f}" for x in _FACTORS]
        worst = f"{each.ratios[each.worst]:.2f} ({each.worst})"
        lines.append(row([f"`{each.name}`", interval(each.interval), gap, worst, *shares]))
    return "\n".join(lines) + "\n"


def _ours(rows: Sequence[Row]) -> Row | None:
    return next((each for each in rows if each.name == OURS), None)


def interval(of: Interval, sign: str = "") -> str:
    """The mean of log ratios and its limits; ``sign`` "+": with a sign each."""
    mean, low, high = (format(value, f"{sign}.3f") for value in (of.mean, of.low, of.high))
    return f"{mean} [{low}, {high}]"


def rates(found: Mapping[str, Mapping[str, Found]]) -> str:
    """A row a task, a column a method: the rate it holds and the factor by which seeds differ; empty without any."""
    methods = list(dict.fromkeys(name for by_method in found.values() for name in by_method))
    if not methods:
        return ""
    lines = [row(["task", *methods]), "|" + "---|" * (1 + len(methods))]
    for task, by_method in found.items():
        cells = [
            f"{by_method[name].mean:.3g} ×/÷ {by_method[name].spread:.2f}"
            if name in by_method
            else ""
            for name in methods
        ]
        lines.append(row([task, *cells]))
    return "\n".join(lines) + "\n"


def to_json(rows: Sequence[Row], chosen: Mapping[str, str]) -> dict[str, Any]:
    """Returns all numbers of the table and of the profile; ``chosen``: task -> the setting that was carried over to it."""
    rising = profiles.factors({each.name: each.ratios for each in rows})
    ours = _ours(rows)
    return {
        "carried_over": dict(chosen),
        "methods": [
            {
                "label": each.name,
                "log_ratio": vars(each.interval),
                "behind": vars(behind(each, ours)) if ours else None,
                "log_ratios": dict(each.ratios),
                "profile": rising[each.name],
            }
            for each in rows
        ],
    }

"""The table and the verdict in print, and the same figures as summary.json."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Sequence
from typing import Any

from . import directional, verdict
from .config import Config
from .results import MEASURES, Curves, Measure
from .statistics import CONFIDENCE, spread
from .text_table import aligned
from .verdict import Judgement

WIDTH = 100


def text(config: Config, curves: Sequence[Curves]) -> str:
    """The report; ``curves`` holds Adam first, then one entry an alpha, then the directional rule."""
    adam, *others = curves
    means = [["", *(_short_label(entry) for entry in curves)]]
    means += [
        [measure.heading, *(_mean_sd(measure, entry) for entry in curves)] for measure in MEASURES
    ]
    differences = [["", *(_short_label(entry) for entry in others)]]
    for measure in MEASURES:
        intervals = [verdict.difference(measure, entry, adam) for entry in others]
        differences.append([measure.heading, *map(measure.signed, intervals)])
    beside = directional.beside_adam(curves)
    rules = "by alpha" if beside is None else "by alpha and by the directional rule"
    quick = "; a quick run, for the whole experiment leave --quick out" if config.quick else ""
    return "\n".join(
        [
            f"Adam against MetaCurvatureLR(Adam), {rules}, "
            f"{config.seeds} seeds of {config.steps} steps: mean ± standard deviation over seeds",
            *aligned(means),
            "  (mean train loss: over training, by trapezoids between evaluations; the lower, the faster)",
            "",
            f"MetaCurvatureLR minus Adam, paired by seed: mean [{CONFIDENCE:.0%} t interval]",
            *aligned(differences),
            "",
            f"Verdict (from the intervals{quick})",
            *([] if beside is None else [*_wrapped(directional.words(beside)), ""]),
            *_wrapped(
                "The reciprocal rule (alpha=...), which this package started from, was to beat Adam:"
            ),
            *(line for words in _verdict(curves) for line in _wrapped(words)),
        ]
    )


def summary(config: Config, curves: Sequence[Curves]) -> dict[str, Any]:
    """Returns the content of summary.json: every number of the table, the verdict, and the traces.

    "directional" is null without that rule; steps that are null there: never in half of the seeds.
    """
    adam, *others = curves
    judgements = _judgements(curves)
    beside = directional.beside_adam(curves)
    return {
        "quick": config.quick,
        "seeds": config.seeds,
        "steps": config.steps,
        "confidence": CONFIDENCE,
        "methods": [_figures(entry) for entry in curves],
        "differences_from_adam": [
            {
                "method": entry.method.name,
                "alpha": entry.method.alpha,
                **{
                    measure.attribute: dataclasses.asdict(verdict.difference(measure, entry, adam))
                    for measure in MEASURES
                },
            }
            for entry in others
        ],
        "verdict": {
            "hypothesis": verdict.over_alphas([each.outcome for each in judgements]).value,
            "per_alpha": [_outcomes(each) for each in judgements],
            "words": _verdict(curves),
        },
        "directional": None
        if beside is None
        else {**dataclasses.asdict(beside), "words": directional.words(beside)},
    }


def _judgements(curves: Sequence[Curves]) -> list[Judgement]:
    """Judges the alphas: the hypothesis is about the rule that has them."""
    adam, *others = curves
    return [verdict.judge(entry, adam) for entry in others if entry.method.alpha is not None]


def _verdict(curves: Sequence[Curves]) -> list[str]:
    return verdict.words(_judgements(curves), curves[0])


def _short_label(curves: Curves) -> str:
    alpha = curves.method.alpha
    return curves.method.label if alpha is None else f"alpha={alpha:g}"


def _figures(curves: Curves) -> dict[str, Any]:
    columns = {
        **{measure.attribute: measure.of(curves) for measure in MEASURES},
        "first_trace": curves.trace[:, 0],
        "final_trace": curves.trace[:, -1],
        "final_lr": curves.lr[:, -1],
    }
    spreads = {name: dataclasses.asdict(spread(values)) for name, values in columns.items()}
    return {"method": curves.method.name, "alpha": curves.method.alpha, **spreads}


def _outcomes(judgement: Judgement) -> dict[str, Any]:
    claims = zip(verdict.CLAIMS, judgement.outcomes, strict=True)
    return {
        "alpha": judgement.curves.method.alpha,
        "hypothesis": judgement.outcome.value,
        "claims": {claim.words: outcome.value for claim, outcome in claims},
    }


def _mean_sd(measure: Measure, curves: Curves) -> str:
    values, places = spread(measure.of(curves)), measure.decimals
    sd = "" if math.isnan(values.sd) else f" ± {values.sd:.{places}f}"
    return f"{values.mean:.{places}f}{sd}"


def _wrapped(paragraph: str) -> list[str]:
    """The paragraph's lines, broken to WIDTH; a list item's later lines are set in."""
    lines = []
    for line in paragraph.splitlines():
        inset = "    " if line.startswith("- ") else "  "
        lines += textwrap.wrap(line, WIDTH, initial_indent="  ", subsequent_indent=inset)
    return lines

"""The report: the table, the sentences, the intervals and the verdict; and the same figures as summary.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from . import directional, sentences, verdict
from .config import Config
from .results import MEASURES, Curves, Measure
from .statistics import CONFIDENCE, spread
from .text_table import aligned, paragraph
from .verdict import Judgement

WIDTH = 100


def text(config: Config, curves: Sequence[Curves]) -> str:
    """The report; ``curves`` holds Adam first, then one entry an alpha, then the directional rule."""
    adam, *others = curves
    differences = _heads(others)
    for measure in MEASURES:
        intervals = [verdict.difference(measure, entry, adam) for entry in others]
        differences.append([measure.heading, *map(measure.signed, intervals)])
    beside = directional.beside_adam(curves)
    quick = "; a quick run, for the whole experiment leave --quick out" if config.quick else ""
    return "\n".join(
        [
            *table(config, curves),
            "  (mean train loss: over training, by trapezoids between evaluations; the lower, the faster)",
            "",
            *(line for told in sentences.results(config, curves) for line in _wrapped(told)),
            "",
            f"Each rule minus Adam, paired by seed: mean [{CONFIDENCE:.0%} t interval]",
            *(line.rstrip() for line in aligned(differences)),
            "",
            f"Verdict (from the intervals{quick})",
            *([] if beside is None else [*_wrapped(directional.words(beside)), ""]),
            *_wrapped("The reciprocal rule, which this package started from, was to beat Adam:"),
            *(line for words in _verdict(curves) for line in _wrapped(words)),
        ]
    )


def table(config: Config, curves: Sequence[Curves]) -> list[str]:
    """Returns the table of what was measured, a column for each method."""
    plural = "s" * (config.seeds > 1)
    means = _heads(curves)
    means += [
        [measure.heading, *(_mean_sd(measure, entry) for entry in curves)] for measure in MEASURES
    ]
    return [
        f"Adam and MetaCurvatureLR(Adam) on mnist1d, {config.seeds} seed{plural} of {config.steps} steps: "
        "mean ± standard deviation over seeds",
        *(line.rstrip() for line in aligned(means)),
    ]


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
        "sentences": sentences.results(config, curves),
        "methods": [_figures(entry) for entry in curves],
        "differences_from_adam": [
            {
                **_key(entry),
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


def _heads(curves: Sequence[Curves]) -> list[list[str]]:
    """The labels over a table's columns, those with a comma on two lines."""
    parts = [entry.method.label.partition(", ") for entry in curves]
    first = ["", *(f"{name}{',' * bool(comma)}" for name, comma, _ in parts)]
    return [first, ["", *(rest for _, _, rest in parts)]]


def _figures(curves: Curves) -> dict[str, Any]:
    columns = {
        **{measure.attribute: measure.of(curves) for measure in MEASURES},
        "first_trace": curves.trace[:, 0],
        "final_trace": curves.trace[:, -1],
        "final_lr": curves.lr[:, -1],
    }
    spreads = {name: dataclasses.asdict(spread(values)) for name, values in columns.items()}
    return {**_key(curves), **spreads}


def _key(curves: Curves) -> dict[str, Any]:
    method = curves.method
    return {"method": method.name, "alpha": method.alpha, "label": method.label}


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


def _wrapped(text: str) -> list[str]:
    """The lines of ``text``, broken to WIDTH; a list item's later lines are set in."""
    lines = []
    for line in text.splitlines():
        inset = "    " if line.startswith("- ") else "  "
        lines += paragraph(line, WIDTH, "  ", inset)
    return lines

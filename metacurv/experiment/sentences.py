"""The result in a few sentences, for somebody who has never seen this experiment.

The numbers choose the words, whichever way they fall.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from . import verdict
from .config import Config
from .results import FINAL_TEST_ACCURACY, FINAL_TEST_LOSS, Curves, Measure
from .statistics import CONFIDENCE, Interval
from .verdict import Judgement, Outcome, difference

_FULL = Config()
_CLAIM = "the claim that it trains faster and better than a constant rate"
_CLAIM_IS = {
    Outcome.SUPPORTED: "is supported",
    Outcome.NOT_SUPPORTED: "is not supported",
    Outcome.UNDECIDED: "stays undecided",
}


def results(config: Config, curves: Sequence[Curves]) -> list[str]:
    """Up to four sentences: what was compared, each rule beside Adam, and the time they take. ``curves`` has Adam first."""
    adam, *others = curves
    directional = [entry for entry in others if entry.method.is_directional]
    reciprocal = [entry for entry in others if not entry.method.is_directional]
    found = [_compared(config, with_directional=bool(directional))]
    found += [_directional(entry, adam) for entry in directional]
    if len(reciprocal) == 1:
        found.append(_one_alpha(verdict.judge(reciprocal[0], adam)))
    else:
        found.append(_alphas([verdict.judge(entry, adam) for entry in reciprocal], adam))
    return [*found, _time(directional, reciprocal, adam)]


def where(config: Config, picture: Path, report: Path) -> str:
    """The last sentence: the files, and how much the result is worth."""
    files = (
        f"the picture is {picture}, and the report with every interval and the verdict is {report}"
    )
    if not is_glimpse(config):
        return f"{files[0].upper()}{files[1:]}."
    plural = "s" * (config.seeds > 1)
    return (
        f"This run of {config.seeds} seed{plural} of {config.steps} steps is a glimpse, not evidence (the full experiment "
        f"has {_FULL.seeds} seeds of {_FULL.steps} steps); {files}."
    )


def is_glimpse(config: Config) -> bool:
    """Tells whether there are fewer seeds or steps than in the full experiment."""
    return config.seeds < _FULL.seeds or config.steps < _FULL.steps


def _compared(config: Config, *, with_directional: bool) -> str:
    finds = (
        "MetaCurvatureLR(Adam) by the directional rule, which finds the learning rate by itself, and "
        if with_directional
        else ""
    )
    seeds = f"each of {config.seeds} seeds" if config.seeds > 1 else "one seed"
    return (
        f"Every method trained the same network on mnist1d for {config.steps} steps from {seeds}: Adam at a constant "
        f"learning rate of {config.lr:g}{',' if finds else ' and'} {finds}MetaCurvatureLR(Adam) by the reciprocal rule, "
        "which lowers Adam's rate where the loss is strongly curved (where the trace of its Hessian is large)."
    )


def _directional(ours: Curves, adam: Curves) -> str:
    accuracy = difference(FINAL_TEST_ACCURACY, ours, adam)
    loss = difference(FINAL_TEST_LOSS, ours, adam)
    mean, adams = (entry.final_test_accuracy.mean() for entry in (ours, adam))
    # A higher accuracy and a higher loss point to different winners.
    joint = "but" if accuracy.side == loss.side != 0 else "and"
    return (
        f"The directional rule ends with {_told('test accuracy', accuracy)}, {mean:.1f} % against {adams:.1f} % "
        f"({_first(FINAL_TEST_ACCURACY, accuracy, ' points')}), {joint} with {_told('test loss', loss)} "
        f"({FINAL_TEST_LOSS.signed(loss)})."
    )


def _one_alpha(judgement: Judgement) -> str:
    """The claims about the rule one by one: any of them alone may decide against it."""
    ours = judgement.curves
    claims: list[str] = []
    for claim, outcome, interval in zip(
        verdict.CLAIMS, judgement.outcomes, judgement.differences, strict=True
    ):
        figures = claim.measure.signed(interval) if claims else _first(claim.measure, interval)
        claims.append(
            f"that it {claim.words} {_CLAIM_IS[outcome]} ({claim.measure.heading} {figures})"
        )
    return (
        f"The reciprocal rule (alpha={ours.method.alpha:g}) takes the learning rate from {ours.lr[0, 0]:.2g} to "
        f"{np.median(ours.lr[:, -1]):.2g}; beside Adam, the claim {_listed(claims)}."
    )


def _alphas(judgements: Sequence[Judgement], adam: Curves) -> str:
    by_side: dict[int, list[str]] = {1: [], -1: [], 0: []}
    for each in judgements:
        side = difference(FINAL_TEST_ACCURACY, each.curves, adam).side
        by_side[side].append(f"{each.curves.method.alpha:g}")
    told = {
        1: "higher than Adam's",
        -1: "lower than Adam's",
        0: "not clearly different from Adam's",
    }
    places = [
        f"{told[side]} at alpha={_listed(alphas)}" for side, alphas in by_side.items() if alphas
    ]
    supported = [
        f"{each.curves.method.alpha:g}" for each in judgements if each.outcome is Outcome.SUPPORTED
    ]
    at = f" at alpha={_listed(supported)}" if supported else ""
    outcome = verdict.over_alphas([each.outcome for each in judgements])
    return (
        f"The reciprocal rule, tried with {len(judgements)} values of alpha, ends with a test accuracy that is "
        f"{', and '.join(places)}: {_CLAIM} {_CLAIM_IS[outcome]}{at}."
    )


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last


def _first(measure: Measure, interval: Interval, unit: str = "") -> str:
    """The first difference of a sentence says what stands in the brackets."""
    figures = f"{interval.mean:+.{measure.decimals}f}{unit}"
    if math.isnan(interval.low):
        return f"{figures}; one seed has no interval"
    limits = measure.signed(interval).partition(" ")[2]
    return f"{figures}, {100 * CONFIDENCE:.0f} % interval {limits}"


def _time(directional: Sequence[Curves], reciprocal: Sequence[Curves], adam: Curves) -> str:
    times = [
        f"{_ratios(entries, adam)} as long by the {name} rule"
        for name, entries in (("directional", directional), ("reciprocal", reciprocal))
        if entries
    ]
    return f"Compared with Adam, training takes {' and '.join(times)} (medians over the seeds)."


def _ratios(entries: Sequence[Curves], adam: Curves) -> str:
    ratios = [float(np.median(entry.total_seconds / adam.total_seconds)) for entry in entries]
    least, most = f"{min(ratios):.2f}", f"{max(ratios):.2f}"
    return f"{least} times" if least == most else f"{least} to {most} times"


def _told(what: str, interval: Interval) -> str:
    """The direction that an interval shows; one around zero shows none."""
    if interval.side == 0:
        return f"a {what} that is not clearly different from Adam's"
    return f"a {'higher' if interval.side > 0 else 'lower'} {what} than Adam"

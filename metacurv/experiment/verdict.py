"""The verdict of the intervals on the seed's hypothesis, in words chosen by the data either way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from .results import (
    BEST_TEST_LOSS,
    FINAL_TEST_ACCURACY,
    FINAL_TEST_LOSS,
    FINAL_TRAIN_LOSS,
    MEAN_TRAIN_LOSS,
    Curves,
    Measure,
)
from .statistics import Interval, paired_interval

HYPOTHESIS = '"Converges faster and achieves better performance than a fixed learning rate"'
# Arithmetic, not data: alpha >= 0, and the trace counts as 0 where it is negative.
BOUND = (
    "lr / (1 + alpha * trace) is never above lr: the rule only ever shrinks the rate, the more the "
    "trace grows, and never takes the larger steps that the hypothesis hopes for."
)


class Outcome(Enum):
    """The outcome of an interval for a claim."""

    SUPPORTED = "supported"
    NOT_SUPPORTED = "not supported"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Claim:
    """A part of the hypothesis: the measure should move in the direction ``better`` (-1 or 1)."""

    words: str
    measure: Measure
    better: int


CLAIMS = (
    Claim("converges faster", MEAN_TRAIN_LOSS, -1),
    Claim("ends with a lower train loss", FINAL_TRAIN_LOSS, -1),
    Claim("ends with a higher test accuracy", FINAL_TEST_ACCURACY, 1),
)


@dataclass(frozen=True)
class Judgement:
    """The outcome and the difference of each claim about one method, and of all of them at once."""

    curves: Curves
    outcomes: tuple[Outcome, ...]
    differences: tuple[Interval, ...]
    outcome: Outcome


def judge(curves: Curves, adam: Curves) -> Judgement:
    """Hold one method against Adam, seed by seed."""
    differences = tuple(difference(claim.measure, curves, adam) for claim in CLAIMS)
    outcomes = tuple(
        outcome_of(interval, better=claim.better)
        for claim, interval in zip(CLAIMS, differences, strict=True)
    )
    return Judgement(curves, outcomes, differences, conjunction(outcomes))


def difference(measure: Measure, curves: Curves, adam: Curves) -> Interval:
    """The interval of a measure's difference from Adam, paired by seed."""
    return paired_interval(measure.of(curves), measure.of(adam))


def compared(measure: Measure, interval: Interval) -> str:
    """A difference from Adam and its sign, which an interval around zero leaves open."""
    relation = {-1: "lower than Adam's", 1: "higher than Adam's", 0: "no clear difference"}
    return f"{relation[interval.side]}, {measure.signed(interval)}"


def outcome_of(interval: Interval, *, better: int) -> Outcome:
    """A claim holds where the whole interval is on its side of zero, fails where on the other."""
    if interval.side == 0:
        return Outcome.UNDECIDED
    return Outcome.SUPPORTED if interval.side == better else Outcome.NOT_SUPPORTED


def conjunction(outcomes: Sequence[Outcome]) -> Outcome:
    """All of several claims at once: one failure fails them, and only all of them hold."""
    if Outcome.NOT_SUPPORTED in outcomes:
        return Outcome.NOT_SUPPORTED
    return Outcome.UNDECIDED if Outcome.UNDECIDED in outcomes else Outcome.SUPPORTED


def over_alphas(outcomes: Sequence[Outcome]) -> Outcome:
    """Any one of several alphas would do: one success holds, and only failure of all fails."""
    if Outcome.SUPPORTED in outcomes:
        return Outcome.SUPPORTED
    return Outcome.UNDECIDED if Outcome.UNDECIDED in outcomes else Outcome.NOT_SUPPORTED


def words(judgements: Sequence[Judgement], adam: Curves) -> list[str]:
    """The verdict, a paragraph an entry: the answer, then for each alpha why."""
    answer = f"{HYPOTHESIS}: {over_alphas([each.outcome for each in judgements]).value.upper()}"
    if len(judgements) > 1:
        good = [f"{j.curves.method.alpha:g}" for j in judgements if j.outcome is Outcome.SUPPORTED]
        where = f" at alpha {', '.join(good)}" if good else ""
        tried = f"{len(judgements)} alphas were tried; the intervals are not corrected for that"
        answer += f"{where} ({tried})"
    paragraphs = [f"{answer}."]
    if len(adam.train_loss) < 2:
        paragraphs.append("One seed has no interval, so it decides nothing: use --seeds 2 or more.")
    return [*paragraphs, *(_about(each, adam) for each in judgements), BOUND]


def _about(judgement: Judgement, adam: Curves) -> str:
    curves = judgement.curves
    lines = [f"{curves.method.label} against Adam: {judgement.outcome.value}."]
    for claim, outcome, interval in zip(
        CLAIMS, judgement.outcomes, judgement.differences, strict=True
    ):
        figures = f"{claim.measure.heading} {claim.measure.signed(interval)}"
        lines.append(f"- {claim.words}: {outcome.value} ({figures})")
    lines += [f"- {_speed(curves, adam)}", f"- {_test_loss(curves, adam)}", f"- {_rate(curves)}"]
    return "\n".join(lines)


def _speed(curves: Curves, adam: Curves) -> str:
    """Says how many steps the better of the two needs to reach the other's end result (median)."""
    behind = np.median(curves.final_train_loss) >= np.median(adam.final_train_loss)
    first, second = (adam, curves) if behind else (curves, adam)
    needed = np.median(first.steps_to_train_loss(second.final_train_loss))
    if np.isinf(needed):
        return "neither reaches the train loss that the other ends with in most seeds"
    return (
        f"{first.method.label} needs {needed:.0f} of {adam.steps[-1]:.0f} steps to reach the train "
        f"loss that {second.method.label} ends with (median)"
    )


def _test_loss(curves: Curves, adam: Curves) -> str:
    """Test loss both ways: at the end, where overfitting counts, and at each one's best."""
    final = difference(FINAL_TEST_LOSS, curves, adam)
    best = difference(BEST_TEST_LOSS, curves, adam)
    return (
        f"test loss at the end: {compared(FINAL_TEST_LOSS, final)}; at each one's best: "
        f"{compared(BEST_TEST_LOSS, best)}. It is lowest {_lowest(adam)}, and {_lowest(curves)}"
    )


def _lowest(curves: Curves) -> str:
    """Says when a method's test loss is lowest, and how far it rises then, as it does where the network overfits."""
    step = np.median(curves.best_test_step)
    risen = np.median(curves.final_test_loss - curves.best_test_loss)
    after = f"rises by {risen:.2f} after it" if step < curves.steps[-1] else "the last"
    return f"at step {step:.0f} with {curves.method.label} ({after})"


def _rate(curves: Curves) -> str:
    """Says where the trace went, and the learning rate with it."""
    first, last = np.median(curves.trace[:, 0]), np.median(curves.trace[:, -1])
    grew = int(np.sum(curves.trace[:, -1] > curves.trace[:, 0]))
    return (
        f"the trace {'grows' if last > first else 'falls'} from {first:.3g} to {last:.3g} "
        f"(medians; it grew in {grew} of {len(curves.trace)} seeds), and takes the learning rate "
        f"from {curves.lr[0, 0]:.2g} to {np.median(curves.lr[:, -1]):.2g}"
    )

"""What the intervals are made to say: supported, not supported, undecided, whichever it is."""

from __future__ import annotations

import numpy as np
import pytest

from metacurv.experiment import report, verdict
from metacurv.experiment.config import ADAM, Config, Method
from metacurv.experiment.results import Array, Curves
from metacurv.experiment.statistics import Interval
from metacurv.experiment.verdict import Outcome

YES, NO, OPEN = Outcome.SUPPORTED, Outcome.NOT_SUPPORTED, Outcome.UNDECIDED
STEPS = np.array([0.0, 100.0, 200.0])
SEEDS = np.array([-0.02, 0.0, 0.01, 0.02])[:, None]  # how far the seeds lie apart


def curves(
    method: Method,
    *,
    train: tuple[float, ...] = (2.0, 1.0, 0.5),
    test: tuple[float, ...] = (2.0, 1.0, 1.5),
    accuracy: float = 0.6,
    trace: tuple[float, ...] = (7.0, 100.0, 300.0),
    seeds: Array = SEEDS,
) -> Curves:
    """Curves of four seeds that differ by ``seeds``."""
    flat = np.zeros_like(seeds) + np.zeros(3)
    lr = 1e-3 / (1 + (method.alpha or 0) * np.array(trace)) + flat
    lr[:, 0] = 1e-3
    return Curves(
        method=method,
        steps=STEPS,
        seconds=STEPS / 100 + flat,
        train_loss=np.array(train) + seeds,
        test_loss=np.array(test) + seeds,
        train_acc=accuracy + flat,
        test_acc=accuracy + flat + seeds / 10,
        lr=lr,
        trace=np.array(trace) + flat,
    )


def noisy(sign: int) -> Array:
    """Seeds shifted now up, now down, so that a difference from ``SEEDS`` is open."""
    return SEEDS + sign * np.array([0.3, -0.3, 0.2, -0.2])[:, None]


@pytest.mark.parametrize(
    ("low", "high", "better", "expected"),
    [
        (0.1, 0.2, 1, YES),
        (0.1, 0.2, -1, NO),
        (-0.2, -0.1, -1, YES),
        (-0.2, -0.1, 1, NO),
        (-0.1, 0.1, 1, OPEN),
        (0.0, 0.2, 1, OPEN),
        (-0.2, 0.0, 1, OPEN),
        (np.nan, np.nan, 1, OPEN),
    ],
)
def test_an_interval_decides_a_claim(
    low: float, high: float, better: int, expected: object
) -> None:
    assert verdict.outcome_of(Interval((low + high) / 2, low, high, 5), better=better) is expected


def test_every_claim_must_hold_and_any_alpha_will_do() -> None:
    assert verdict.conjunction([YES, YES]) is YES
    assert verdict.conjunction([YES, OPEN]) is OPEN
    assert verdict.conjunction([OPEN, NO, YES]) is NO
    assert verdict.over_alphas([NO, YES, OPEN]) is YES
    assert verdict.over_alphas([NO, OPEN]) is OPEN
    assert verdict.over_alphas([NO, NO]) is NO


def test_worse_everywhere_is_not_supported() -> None:
    adam, ours = curves(ADAM), curves(Method(0.01), train=(2.0, 1.5, 1.0), accuracy=0.5)
    judgement = verdict.judge(ours, adam)
    assert judgement.outcomes == (NO, NO, NO)
    text = "\n".join(verdict.words([judgement], adam))
    assert "NOT SUPPORTED." in text
    assert "converges faster: not supported (mean train loss +0.375" in text
    assert (
        "Adam needs 100 of 200 steps to reach the train loss that reciprocal, alpha=0.01 ends"
        in text
    )


def test_better_everywhere_is_supported() -> None:
    adam, ours = curves(ADAM), curves(Method(0.01), train=(2.0, 0.5, 0.1), accuracy=0.7)
    judgement = verdict.judge(ours, adam)
    assert judgement.outcomes == (YES, YES, YES)
    text = "\n".join(verdict.words([judgement], adam))
    assert ": SUPPORTED." in text
    assert "ends with a higher test accuracy: supported (final test acc., % +10.0" in text
    assert "reciprocal, alpha=0.01 needs 100 of 200 steps to reach the train loss that Adam" in text


def test_better_in_one_thing_and_worse_in_another_is_not_supported() -> None:
    adam, ours = curves(ADAM), curves(Method(0.01), train=(2.0, 0.5, 0.1), accuracy=0.5)
    judgement = verdict.judge(ours, adam)
    assert judgement.outcomes == (YES, YES, NO)
    assert judgement.outcome is NO


def test_seeds_that_disagree_leave_it_undecided() -> None:
    adam, ours = curves(ADAM), curves(Method(0.01), seeds=noisy(1))
    judgement = verdict.judge(ours, adam)
    assert judgement.outcomes == (OPEN, OPEN, OPEN)
    assert "UNDECIDED." in verdict.words([judgement], adam)[0]


def test_one_seed_decides_nothing_and_says_so() -> None:
    adam = curves(ADAM, seeds=SEEDS[:1])
    ours = curves(Method(0.01), train=(2.0, 1.5, 1.0), seeds=SEEDS[:1])
    judgement = verdict.judge(ours, adam)
    assert judgement.outcome is OPEN
    text = "\n".join(verdict.words([judgement], adam))
    assert "use --seeds 2 or more" in text
    assert "nan" not in text


def test_of_several_alphas_it_names_the_ones_that_held() -> None:
    adam = curves(ADAM)
    good = curves(Method(0.001), train=(2.0, 0.5, 0.1), accuracy=0.7)
    bad = curves(Method(0.1), train=(2.0, 1.5, 1.0), accuracy=0.5)
    answer = verdict.words([verdict.judge(each, adam) for each in (good, bad)], adam)[0]
    assert "SUPPORTED at alpha 0.001 (2 alphas were tried" in answer
    answer = verdict.words([verdict.judge(bad, adam)] * 2, adam)[0]
    assert "NOT SUPPORTED (2 alphas" in answer


@pytest.mark.parametrize(
    ("test", "end", "best"),
    [
        ((2.0, 1.1, 1.1), "lower than Adam's, -0.400", "higher than Adam's, +0.100"),
        ((2.0, 0.9, 1.6), "higher than Adam's, +0.100", "lower than Adam's, -0.100"),
        ((2.0, 1.0, 1.5), "no clear difference, +0.000", "no clear difference, +0.000"),
    ],
)
def test_test_loss_is_told_both_ways(test: tuple[float, ...], end: str, best: str) -> None:
    adam, ours = curves(ADAM), curves(Method(0.01), test=test)
    text = "\n".join(verdict.words([verdict.judge(ours, adam)], adam))
    assert f"test loss at the end: {end}" in text
    assert f"at each one's best: {best}" in text
    assert "lowest at step 100 with Adam (rises by 0.50 after it), and at step 100 with rec" in text


def test_the_trace_is_told_as_it_went() -> None:
    adam = curves(ADAM)
    for trace, told in (
        ((7.0, 100.0, 300.0), "grows from 7 to 300 (medians; it grew in 4 of 4 seeds)"),
        ((300.0, 100.0, 7.0), "falls from 300 to 7 (medians; it grew in 0 of 4 seeds)"),
    ):
        ours = curves(Method(0.01), trace=trace)
        text = "\n".join(verdict.words([verdict.judge(ours, adam)], adam))
        assert told in text
        assert f"from 0.001 to {1e-3 / (1 + 0.01 * trace[-1]):.2g}" in text
        assert "only ever shrinks the rate" in text


def test_ahead_by_the_medians_yet_behind_in_half_of_the_seeds() -> None:
    adam = curves(ADAM, seeds=np.array([0.0, 0.0, -0.3, -0.3])[:, None])
    ours = curves(Method(0.01), seeds=np.array([-0.1, -0.1, 0.1, -0.2])[:, None])
    assert adam.steps_to_train_loss(ours.final_train_loss)[:2].tolist() == [np.inf, np.inf]
    text = "\n".join(verdict.words([verdict.judge(ours, adam)], adam))
    assert "neither reaches the train loss that the other ends with in most seeds" in text


def test_steps_to_a_loss_lie_between_evaluations() -> None:
    adam = curves(ADAM, seeds=np.zeros((3, 1)))
    found = adam.steps_to_train_loss(np.array([2.5, 1.5, 0.75]))
    assert found.tolist() == [0.0, 50.0, 150.0]


def test_measures_by_hand() -> None:
    adam = curves(ADAM, seeds=np.zeros((2, 1)))
    assert adam.mean_train_loss.tolist() == [(1.5 * 100 + 0.75 * 100) / 200] * 2
    assert adam.final_train_loss.tolist() == [0.5, 0.5]
    assert (adam.best_test_loss[0], adam.best_test_step[0], adam.final_test_loss[0]) == (
        1,
        100,
        1.5,
    )
    assert adam.final_test_accuracy.tolist() == [60, 60]
    assert adam.total_seconds.tolist() == [2, 2]


def test_the_table_holds_what_the_summary_holds() -> None:
    config = Config(seeds=4, steps=200, alphas=(0.01, 0.1), quick=True)
    entries = [
        curves(ADAM),
        curves(Method(0.01), train=(2.0, 1.5, 1.0)),
        curves(Method(0.1), train=(2.0, 1.75, 1.5)),
    ]
    text, summary = report.text(config, entries), report.summary(config, entries)
    assert [entry["alpha"] for entry in summary["methods"]] == [None, 0.01, 0.1]
    adam, first, _ = summary["methods"]
    line = next(line for line in text.splitlines() if "final train loss" in line)
    for entry in (adam, first):
        found = entry["final_train_loss"]
        assert f"{found['mean']:.3f} ± {found['sd']:.3f}" in line
    assert "+0.500 [+0.500, +0.500]" in text
    assert summary["verdict"]["hypothesis"] == "not supported"
    assert summary["verdict"]["per_alpha"][0]["claims"]["converges faster"] == "not supported"
    assert "a quick run" in text
    assert "a quick run" not in report.text(Config(seeds=4, steps=200), entries[:2])

"""What is said of the directional rule beside Adam, whichever way the numbers fall."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from metacurv.experiment import directional, report, storage
from metacurv.experiment.config import ADAM, DIRECTIONAL, Config, Method
from metacurv.experiment.directional import BesideAdam
from metacurv.experiment.results import Array, Curves

STEPS = np.array([0.0, 100.0, 200.0])
COLUMNS = ("seconds", "train_loss", "test_loss", "train_acc", "test_acc", "lr", "trace")


def curves(method: Method, accuracy: object, *, seconds: object = 2.0, loss: float = 1.0) -> Curves:
    """Of the accuracies [S, 3] or [3] (then of four seeds), and with ``seconds`` at the end."""
    values: Array = np.array(accuracy, dtype=float) + np.zeros((4, 3))
    flat = np.zeros_like(values)
    return Curves(
        method=method,
        steps=STEPS,
        seconds=np.linspace(0, 1, 3) * (np.array(seconds) + np.zeros(4))[:, None],
        train_loss=flat + 1.0,
        test_loss=flat + loss,
        train_acc=values,
        test_acc=values,
        lr=flat + 1e-3,
        trace=flat + 7.0,
    )


ADAMS = curves(ADAM, (0.2, 0.65, 0.5))  # best at step 100


def beside(ours: Curves, adam: Curves = ADAMS) -> BesideAdam:
    found = directional.beside_adam([adam, curves(Method(0.01), (0.9, 0.9, 0.9)), ours])
    assert found is not None
    return found


def test_steps_to_an_accuracy_by_hand() -> None:
    """Between evaluations on a line, the first time only, at the very value, at the start, never."""
    ours = curves(DIRECTIONAL, [(0.2, 0.7, 0.3), (0.2, 0.5, 0.6), (0.7, 0.1, 0.8), (0.1, 0.5, 0.5)])
    found = ours.steps_to_test_accuracy(np.array([65.0, 60.0, 65.0, 51.0]))
    assert found.tolist() == pytest.approx([90.0, 200.0, 0.0, np.inf])
    assert ours.best_test_accuracy.tolist() == pytest.approx([70, 60, 80, 50])
    assert ours.best_test_accuracy_step.tolist() == [100, 200, 200, 100]
    own = ours.steps_to_test_accuracy(ours.best_test_accuracy)
    assert own.tolist() == ours.best_test_accuracy_step.tolist()


@pytest.mark.parametrize(
    ("accuracies", "relation", "reaching"),
    [
        ((0.2, 0.7, 0.8), "higher than Adam's, +30.0 [", "best test accuracy sooner: at step 90,"),
        ((0.2, 0.65, 0.65), "higher than Adam's, +15.0 [", "accuracy no sooner: at step 100,"),
        ((0.2, 0.3, 0.65), "higher than Adam's, +15.0 [", "accuracy later: at step 200,"),
        ((0.2, 0.3, 0.4), "lower than Adam's, -10.0 [", "does not reach Adam's best test accuracy"),
    ],
    ids=["sooner", "at the same step", "later", "never"],
)
def test_the_words_follow_the_numbers(
    accuracies: tuple[float, ...], relation: str, reaching: str
) -> None:
    words = directional.words(beside(curves(DIRECTIONAL, accuracies)))
    assert f"- final test acc., %: {relation}" in words
    assert reaching in words
    reached = 4 if max(accuracies) >= 0.65 else 0
    assert f"in {reached} of 4 seeds" in words
    assert "inf" not in words
    assert "step 100" in words  # Adam's


def test_seeds_that_disagree_are_no_clear_difference() -> None:
    ends = np.array([0.4, 0.6, 0.4, 0.62])[:, None]
    words = directional.words(beside(curves(DIRECTIONAL, ends)))
    assert "final test acc., %: no clear difference, +0.5 [-" in words
    assert "does not reach Adam's best test accuracy in half of the seeds or more" in words
    assert "in 0 of 4 seeds" in words


def test_steps_and_time_are_medians_of_pairs() -> None:
    ends = [(0.2, 0.3, 0.65), (0.2, 0.7, 0.7), (0.65, 0.7, 0.7), (0.1, 0.2, 0.3)]
    found = beside(
        curves(DIRECTIONAL, ends, seconds=(2.0, 3.0, 8.0, 6.0)),
        curves(ADAM, (0.2, 0.65, 0.5), seconds=(1.0, 2.0, 4.0, 2.0)),
    )
    assert found.steps_to_adams_best_test_accuracy == pytest.approx((90 + 200) / 2)
    assert found.adams_steps_to_its_best_test_accuracy == 100
    assert found.seeds_that_reach_it == 3
    assert found.seconds_ratio == pytest.approx(2.0)  # of 2, 1.5, 2, 3
    assert "training time: 2.00 times Adam's" in directional.words(found)


@pytest.mark.parametrize(
    ("loss", "told"), [(0.5, "lower than Adam's, -0.500"), (1.5, "higher than Adam's, +0.500")]
)
def test_the_test_loss_is_told_whichever_it_is(loss: float, told: str) -> None:
    ours = curves(DIRECTIONAL, (0.2, 0.7, 0.8), loss=loss)
    assert f"test loss at the end: {told}" in directional.words(beside(ours))


def test_one_seed_has_no_interval() -> None:
    one = [
        dataclasses.replace(entry, **{name: getattr(entry, name)[:1] for name in COLUMNS})
        for entry in (ADAMS, curves(DIRECTIONAL, (0.2, 0.7, 0.8)))
    ]
    words = directional.words(beside(one[1], one[0]))
    assert "no clear difference, +30.0" in words
    assert "in 1 of 1 seeds" in words
    assert "nan" not in words


def test_the_hypothesis_is_about_the_alphas_alone() -> None:
    config = Config(seeds=4, steps=200)
    made = [ADAMS, curves(Method(0.01), (0.2, 0.3, 0.4)), curves(DIRECTIONAL, (0.2, 0.7, 0.8))]
    alone, together = report.summary(config, made[:-1]), report.summary(config, made)
    assert together["verdict"] == alone["verdict"]
    assert set(alone["verdict"]) == {"hypothesis", "per_alpha", "words"}
    assert alone["directional"] is None


def test_the_report_and_the_summary_hold_it(tmp_path: Path) -> None:
    """Strict JSON, where neither "never" nor a rate before the first step is a number."""
    config = Config(seeds=4, steps=200)
    ours = curves(DIRECTIONAL, (0.2, 0.3, 0.4))
    ours.lr[:, 0] = np.nan
    made = [ADAMS, curves(Method(0.01), (0.2, 0.3, 0.4)), ours]
    text, summary = report.text(config, made), report.summary(config, made)
    table, told, differences, verdict, reciprocal = text.split("\n\n")
    assert table.splitlines()[1].split() == ["Adam", "reciprocal,", "directional"]
    assert table.splitlines()[2].split() == ["alpha=0.01"]
    assert differences.splitlines()[1].split() == ["reciprocal,", "directional"]
    assert " ".join(told.split()) == " ".join(summary["sentences"])
    assert verdict.splitlines()[1].startswith("  The directional rule against Adam, evaluated at")
    assert reciprocal.startswith("  The reciprocal rule")
    storage.write_json(tmp_path / "summary.json", summary)
    kept = json.loads((tmp_path / "summary.json").read_text())
    assert kept["methods"][-1]["method"] == "directional"
    assert kept["differences_from_adam"][-1]["method"] == "directional"
    assert kept["directional"]["steps_to_adams_best_test_accuracy"] is None
    assert kept["directional"]["test_accuracy"]["mean"] == pytest.approx(-10)
    assert kept["directional"]["words"] == directional.words(beside(ours))

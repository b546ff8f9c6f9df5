"""The sentences at the end of the experiment say what the numbers say, whichever way they fall."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from metacurv.experiment import sentences
from metacurv.experiment.config import ADAM, DIRECTIONAL, Config, Method
from metacurv.experiment.results import Curves

SEEDS = 4
CONFIG = Config(seeds=SEEDS, steps=200, lr=0.002)
APART = np.array([0.3, -0.3, 0.2, -0.2])  # seeds that disagree, so that an interval holds zero


def curves(
    method: Method,
    *,
    accuracy: object = 0.6,
    test_loss: object = 1.0,
    train_loss: tuple[float, ...] = (2.0, 1.0, 0.5),
    seconds: float = 2.0,
    last_lr: float = 1e-4,
) -> Curves:
    """Curves of four seeds; ``accuracy`` and ``test_loss``: a number, or one a seed."""

    def flat(values: object) -> np.ndarray:
        return np.zeros((SEEDS, 3)) + np.reshape(np.array(values, dtype=float), (-1, 1))

    # Seeds differ alike in every method, so that a paired difference has no spread.
    shared = np.array([0.0, 0.01, 0.02, 0.03])[:, None]
    return Curves(
        method=method,
        steps=np.array([0.0, 100.0, 200.0]),
        seconds=np.array([0.0, 0.5, 1.0]) * seconds + np.zeros((SEEDS, 3)),
        train_loss=np.array(train_loss) + shared,
        test_loss=flat(test_loss) + shared,
        train_acc=flat(0.5),
        test_acc=flat(accuracy) + shared,
        lr=np.array([2e-3, 1e-3, last_lr]) + np.zeros((SEEDS, 3)),
        trace=flat(7.0),
    )


ADAMS = curves(ADAM)
RECIPROCAL = curves(Method(0.01))


def told(*others: Curves, adam: Curves = ADAMS, config: Config = CONFIG) -> list[str]:
    alphas = tuple(each.method.alpha for each in others if each.method.alpha is not None)
    directional = any(each.method.is_directional for each in others)
    config = dataclasses.replace(config, alphas=alphas, directional=directional)
    return sentences.results(config, [adam, *others])


def of_one_seed(entry: Curves) -> Curves:
    columns = ("seconds", "train_loss", "test_loss", "train_acc", "test_acc", "lr", "trace")
    return dataclasses.replace(entry, **{name: getattr(entry, name)[:1] for name in columns})


def test_four_whole_sentences_before_the_one_about_files() -> None:
    found = told(RECIPROCAL, curves(DIRECTIONAL))
    assert len(found) == 4
    assert all(each[0].isupper() and each.endswith(".") and ".." not in each for each in found)


def test_the_first_says_what_was_compared() -> None:
    first = told(RECIPROCAL, curves(DIRECTIONAL))[0]
    assert "for 200 steps from each of 4 seeds" in first
    assert "Adam at a constant learning rate of 0.002" in first
    assert "directional rule, which finds the learning rate by itself" in first
    assert "directional" not in told(RECIPROCAL)[0]


@pytest.mark.parametrize(
    ("accuracy", "test_loss", "says"),
    [
        (
            0.7,
            0.5,
            "a higher test accuracy than Adam, 71.5 % against 61.5 % (+10.0 points, 95 % interval [+10.0, +10.0]), and "
            "with a lower test loss than Adam (-0.500 [-0.500, -0.500]).",
        ),
        (0.7, 1.5, "but with a higher test loss than Adam (+0.500 [+0.500, +0.500])."),
        (
            0.5,
            1.5,
            "a lower test accuracy than Adam, 51.5 % against 61.5 % (-10.0 points, 95 % interval [-10.0, -10.0]), and "
            "with a higher test loss than Adam",
        ),
        (0.5, 0.5, "but with a lower test loss than Adam (-0.500"),
        (
            0.6 + APART,
            1.0 + APART,
            "a test accuracy that is not clearly different from Adam's, 61.5 % against 61.5 % (+0.0 points, 95 % interval "
            "[-46.8, +46.8]), and with a test loss that is not clearly different from Adam's (+0.000 [-0.468, +0.468]).",
        ),
    ],
    ids=["win", "higher loss", "loss", "lower loss", "undecided"],
)
def test_the_second_says_who_won(accuracy: object, test_loss: object, says: str) -> None:
    second = told(RECIPROCAL, curves(DIRECTIONAL, accuracy=accuracy, test_loss=test_loss))[1]
    assert second.startswith("The directional rule ends with a ")
    assert says in second.replace("-0.0 points", "+0.0 points").replace("-0.000", "+0.000")


def test_one_seed_has_no_interval() -> None:
    ours = [of_one_seed(each) for each in (RECIPROCAL, curves(DIRECTIONAL, accuracy=0.7))]
    found = told(*ours, adam=of_one_seed(ADAMS), config=dataclasses.replace(CONFIG, seeds=1))
    assert "from one seed:" in found[0]
    assert "not clearly different from Adam's, 70.0 % against 60.0 %" in found[1]
    assert "(+10.0 points; one seed has no interval)" in found[1]
    assert "stays undecided" in found[2]
    assert "nan" not in "".join(found)


@pytest.mark.parametrize(
    ("train_loss", "accuracy", "says"),
    [
        ((2.0, 1.5, 1.0), 0.5, ["is not supported"] * 3),
        ((2.0, 0.5, 0.1), 0.7, ["is supported"] * 3),
        ((2.0, 0.5, 0.1), 0.6 + APART, ["is supported", "is supported", "stays undecided"]),
    ],
    ids=["worse", "better", "open"],
)
def test_one_alpha_is_told_with_its_rate_and_claim_by_claim(
    train_loss: tuple[float, ...], accuracy: object, says: list[str]
) -> None:
    ours = curves(Method(0.01), train_loss=train_loss, accuracy=accuracy)
    third = told(ours, curves(DIRECTIONAL))[2]
    start = "The reciprocal rule (alpha=0.01) takes the learning rate from 0.002 to 0.0001; beside Adam, the claim "
    assert third.startswith(start)
    mean, last = (train_loss[1] - 1) / 2 + (train_loss[2] - 0.5) / 4, train_loss[2] - 0.5
    assert (
        f"that it converges faster {says[0]} (mean train loss {mean:+.3f}, 95 % interval [" in third
    )
    assert (
        f"that it ends with a lower train loss {says[1]} (final train loss {last:+.3f} [" in third
    )
    assert f"and that it ends with a higher test accuracy {says[2]} (final test acc., % " in third
    assert told(ours)[1] == third  # without the directional rule it is the second


def test_several_alphas_are_told_by_how_they_ended() -> None:
    good = curves(Method(0.001), train_loss=(2.0, 0.5, 0.1), accuracy=0.7)
    bad = [curves(Method(alpha), train_loss=(2.0, 1.5, 1.0), accuracy=0.5) for alpha in (0.1, 1.0)]
    same = curves(Method(0.01), accuracy=0.6 + APART)
    assert told(good, same, *bad)[1] == (
        "The reciprocal rule, tried with 4 values of alpha, ends with a test accuracy that is higher than Adam's at "
        "alpha=0.001, and lower than Adam's at alpha=0.1 and 1, and not clearly different from Adam's at alpha=0.01: the "
        "claim that it trains faster and better than a constant rate is supported at alpha=0.001."
    )
    found = told(*bad)[1]
    assert "that is lower than Adam's at alpha=0.1 and 1: the claim" in found
    assert found.endswith("is not supported.")


def test_the_time_is_told_as_a_ratio() -> None:
    ours = curves(DIRECTIONAL, seconds=2.2)
    alphas = [curves(Method(alpha), seconds=seconds) for alpha, seconds in ((0.1, 2.5), (1.0, 3.0))]
    assert told(*alphas, ours)[-1] == (
        "Compared with Adam, training takes 1.10 times as long by the directional rule and 1.25 to 1.50 times as long by "
        "the reciprocal rule (medians over the seeds)."
    )
    assert "takes 1.25 times as long by the reciprocal rule (med" in told(alphas[0])[-1]


@pytest.mark.parametrize(
    ("seeds", "steps", "glimpse"),
    [(10, 4000, False), (20, 9000, False), (5, 2000, True), (9, 4000, True), (10, 3999, True)],
)
def test_a_short_run_is_called_a_glimpse(seeds: int, steps: int, glimpse: bool) -> None:
    config = Config(seeds=seeds, steps=steps)
    last = sentences.where(config, Path("a.png"), Path("b.txt"))
    assert "a.png" in last
    assert "b.txt" in last
    assert (
        "is a glimpse, not evidence (the full experiment has 10 seeds of 4000" in last
    ) == glimpse
    assert last.startswith(
        f"This run of {seeds} seeds of {steps} steps" if glimpse else "The picture is"
    )

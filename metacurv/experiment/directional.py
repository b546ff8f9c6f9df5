"""The directional rule beside Adam: how accurate, how soon and in what time, told either way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .results import FINAL_TEST_ACCURACY, FINAL_TEST_LOSS, Curves
from .statistics import Interval
from .verdict import compared, difference


@dataclass(frozen=True)
class BesideAdam:
    """The directional rule beside Adam: differences are paired by seed; steps and the ratio are medians over seeds."""

    test_accuracy: Interval
    """After the last step, per cent, minus Adam's."""
    test_loss: Interval
    """After the last step, nats, minus Adam's."""
    steps_to_adams_best_test_accuracy: float
    """Until the test accuracy is what that seed's Adam has at its best; inf: half of them never."""
    adams_steps_to_its_best_test_accuracy: float
    seeds_that_reach_it: int
    seconds_ratio: float
    """Wall time of the training steps over Adam's."""


def beside_adam(curves: Sequence[Curves]) -> BesideAdam | None:
    """The comparison, or None where the directional rule was left out; ``curves`` has Adam first."""
    adam, *others = curves
    for entry in others:
        if entry.method.is_directional:
            return _compare(entry, adam)
    return None


def _compare(curves: Curves, adam: Curves) -> BesideAdam:
    steps = curves.steps_to_test_accuracy(adam.best_test_accuracy)
    return BesideAdam(
        difference(FINAL_TEST_ACCURACY, curves, adam),
        difference(FINAL_TEST_LOSS, curves, adam),
        float(np.median(steps)),
        float(np.median(adam.best_test_accuracy_step)),
        int(np.isfinite(steps).sum()),
        float(np.median(curves.total_seconds / adam.total_seconds)),
    )


def words(beside: BesideAdam) -> str:
    """Says the comparison in one paragraph."""
    times = f"{beside.seconds_ratio:.2f} times Adam's (median of the seeds' ratios)"
    return "\n".join(
        [
            "The directional rule against Adam, evaluated at the average of its iterates; it finds "
            "its learning rate by itself.",
            f"- final test acc., %: {compared(FINAL_TEST_ACCURACY, beside.test_accuracy)}",
            f"- {_reaching(beside)}",
            f"- test loss at the end: {compared(FINAL_TEST_LOSS, beside.test_loss)}",
            f"- training time: {times}",
        ]
    )


def _reaching(beside: BesideAdam) -> str:
    """Says when the rule is as accurate as each seed's Adam at its best, and whether that is sooner."""
    needed = beside.steps_to_adams_best_test_accuracy
    adams = beside.adams_steps_to_its_best_test_accuracy
    seeds = f"it does in {beside.seeds_that_reach_it} of {beside.test_accuracy.n} seeds"
    if np.isinf(needed):
        return (
            f"does not reach Adam's best test accuracy in half of the seeds or more ({seeds}); Adam "
            f"has it at step {adams:.0f} (median)"
        )
    when = "sooner" if needed < adams else "later" if needed > adams else "no sooner"
    return (
        f"reaches Adam's best test accuracy {when}: at step {needed:.0f}, Adam at step "
        f"{adams:.0f} (medians; {seeds})"
    )

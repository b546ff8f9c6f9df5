"""The evaluations of all runs as arrays, and the measures that the table and the verdict use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import integrate  # type: ignore[import-untyped]

from .config import Method
from .statistics import Interval
from .training import Row

Array = NDArray[np.float64]


def _last(column: Array) -> Array:
    values: Array = column[:, -1]
    return values


@dataclass(frozen=True)
class Curves:
    """One method's evaluations: columns [S, E], S seeds by E evaluations; ``steps``: [E]."""

    method: Method
    steps: Array
    seconds: Array
    train_loss: Array
    test_loss: Array
    train_acc: Array
    test_acc: Array
    lr: Array
    trace: Array

    @classmethod
    def from_rows(cls, method: Method, rows: Sequence[Sequence[Row]]) -> Curves:
        """Makes the curves from the evaluations of each seed.

        Args:
            method: the method they are of.
            rows: the evaluations of each seed.
        """

        def column(name: str) -> Array:
            return np.array([[row[name] for row in seed] for seed in rows], dtype=np.float64)

        names = ("seconds", "train_loss", "test_loss", "train_acc", "test_acc", "lr", "trace")
        return cls(method, steps=column("step")[0], **{name: column(name) for name in names})

    @property
    def final_train_loss(self) -> Array:
        """The train loss after the last step, nats: [S]."""
        return _last(self.train_loss)

    @property
    def mean_train_loss(self) -> Array:
        """The train loss averaged over the steps (trapezoids), nats: [S]; low where it fell fast."""
        mean: Array = integrate.trapezoid(self.train_loss, self.steps, axis=1) / self.steps[-1]
        return mean

    @property
    def final_test_loss(self) -> Array:
        """The test loss after the last step, nats: [S]."""
        return _last(self.test_loss)

    @property
    def best_test_loss(self) -> Array:
        """The lowest test loss at any evaluation, nats: [S]."""
        best: Array = self.test_loss.min(axis=1)
        return best

    @property
    def best_test_step(self) -> Array:
        """The number of finished steps at the lowest test loss: [S]."""
        found: Array = self.steps[self.test_loss.argmin(axis=1)]
        return found

    @property
    def final_test_accuracy(self) -> Array:
        """The test accuracy after the last step, per cent: [S]."""
        return 100 * _last(self.test_acc)

    @property
    def best_test_accuracy(self) -> Array:
        """The highest test accuracy at any evaluation, per cent: [S]."""
        best: Array = 100 * self.test_acc.max(axis=1)
        return best

    @property
    def best_test_accuracy_step(self) -> Array:
        """The number of finished steps where the highest test accuracy was reached first: [S]."""
        found: Array = self.steps[self.test_acc.argmax(axis=1)]
        return found

    @property
    def total_seconds(self) -> Array:
        """The wall time of the training steps, seconds: [S]."""
        return _last(self.seconds)

    def steps_to_train_loss(self, threshold: Array) -> Array:
        """Returns the steps until each seed's train loss is at most its ``threshold`` [S]: [S]; inf: never.

        The loss is linear between evaluations.
        """
        return self._first_steps(-self.train_loss, -threshold)

    def steps_to_test_accuracy(self, threshold: Array) -> Array:
        """Returns the steps until each seed's test accuracy is at least its ``threshold`` [S], per cent: [S]; inf: never.

        The accuracy is linear between evaluations.
        """
        return self._first_steps(100 * self.test_acc, threshold)

    def _first_steps(self, values: Array, goals: Array) -> Array:
        """Returns the steps at which ``values`` [S, E] first come up to ``goals`` [S]: [S]."""
        found = np.full(len(goals), np.inf)
        for seed, (row, goal) in enumerate(zip(values, goals, strict=True)):
            reached = np.flatnonzero(row >= goal)
            if len(reached) == 0:
                continue
            after = reached[0]
            if after == 0:
                found[seed] = self.steps[0]
                continue
            fraction = (goal - row[after - 1]) / (row[after] - row[after - 1])
            found[seed] = self.steps[after - 1] + fraction * (
                self.steps[after] - self.steps[after - 1]
            )
        return found


@dataclass(frozen=True)
class Measure:
    """A number a seed: an attribute of Curves, its heading, and the decimals worth reading."""

    attribute: str
    heading: str
    decimals: int

    def of(self, curves: Curves) -> Array:
        """Returns the measure for every seed: [S]."""
        values: Array = getattr(curves, self.attribute)
        return values

    def signed(self, interval: Interval) -> str:
        """A difference in this measure: mean and, where there are any, limits."""
        places = self.decimals
        if math.isnan(interval.low):
            return f"{interval.mean:+.{places}f}"
        return (
            f"{interval.mean:+.{places}f} [{interval.low:+.{places}f}, {interval.high:+.{places}f}]"
        )


FINAL_TRAIN_LOSS = Measure("final_train_loss", "final train loss", 3)
MEAN_TRAIN_LOSS = Measure("mean_train_loss", "mean train loss", 3)
FINAL_TEST_LOSS = Measure("final_test_loss", "final test loss", 3)
BEST_TEST_LOSS = Measure("best_test_loss", "best test loss", 3)
FINAL_TEST_ACCURACY = Measure("final_test_accuracy", "final test acc., %", 1)
SECONDS = Measure("total_seconds", "training time, s", 2)
MEASURES = (
    FINAL_TRAIN_LOSS,
    MEAN_TRAIN_LOSS,
    FINAL_TEST_LOSS,
    BEST_TEST_LOSS,
    FINAL_TEST_ACCURACY,
    SECONDS,
)

"""One run: a task from a seed by a method. The loop is the same for all of them."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from metacurv.experiment.environment import git_commit
from metacurv.experiment.training import Batches

from . import task_sets
from .catalogue import METHODS
from .methods import Maker, Setting
from .normalisation import statistics_of
from .part import Part
from .task import Task

_CHECK_EVERY = 50  # steps between looks at whether the loss is finite
_CURVE_POINTS = 20
_RATE_POINT = 6  # of the curve: after 30 % of the steps a rule with a horizon has its rate, and the finish has not begun
Record = dict[str, Any]


class Training:
    """A task from a seed by a method, a name in ``METHODS`` or what makes one. ``seconds``: CPU time of the steps.

    A loss that is not finite ends it, unless ``goes_on``.
    """

    def __init__(
        self,
        task: Task,
        method: str | Maker,
        seed: int,
        user_lr: float,
        *,
        goes_on: bool = False,
    ) -> None:
        self.task, self._goes_on = task, goes_on
        self.splits = task.data(seed)
        self.model = task.network(seed)
        make = METHODS[method] if isinstance(method, str) else method
        self.method = make(Setting(task, self.model, self.splits, seed, user_lr))
        self.done, self.seconds, self.diverged = 0, 0.0, False
        self._batches = Batches(len(self.splits.train), task.batch_size, seed)
        self._last: list[torch.Tensor] = []

    def advance(self, end: int) -> None:
        """Takes the steps up to ``end``, or to where the loss is found not to be finite."""
        started = time.process_time()
        while self.done < end and not self.diverged:
            self._step()
        self.seconds += time.process_time() - started

    def _step(self) -> None:
        step, train, method = self.done, self.splits.train, self.method
        rows = self._batches[step]
        x, y = train.x[rows], train.y[rows]
        method.begin(step, x, y)
        method.optimizer.zero_grad()
        with method.forward():
            loss = self.task.loss_fn(self.model(x), y)
        method.with_loss(loss)
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        method.step()
        self.done += 1
        if self.done > self.task.steps - _CHECK_EVERY:
            self._last.append(loss.detach())
        elif step % _CHECK_EVERY == 0 and not self._goes_on:
            self.diverged = not math.isfinite(loss.item())

    def train_loss(self) -> float:
        """Returns the mean over the last batches; nan before them."""
        return float(torch.stack(self._last).double().mean()) if self._last else math.nan

    def results(self, part: Part) -> dict[str, float]:
        """Returns the results of the last iterate and, where the method has one, the average."""
        with self.method.evaluating():
            found = {"last": self._result(part)}
        if self.method.averaged is not None:
            with self.method.averaged():
                found["average"] = self._result(part)
        return found

    def _result(self, part: Part) -> float:
        with statistics_of(self.model, self.splits.train.x):
            return self.task.result(self.model, part)


def run(
    task_name: str, method_name: str, seed: int, *, steps: int | None = None, user_lr: float = 1e-3
) -> Record:
    """Trains and evaluates. The choice between iterates and methods is by "val_*" alone; "test_*" is there to be reported.

    Args:
        task_name: the name of a task of either set.
        method_name: a name in ``METHODS``.
        seed: the seed of data, initial weights and batches.
        steps: instead of the task's.
        user_lr: what the base optimizer is made with where the method leaves that to the user.

    Returns:
        What ``store`` keeps: plain numbers and strings.
    """
    task = task_sets.find(task_name)
    if steps is not None:
        task = replace(task, steps=steps)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # what dropout draws
        return _run(task, method_name, seed, user_lr)


def _run(task: Task, method_name: str, seed: int, user_lr: float) -> Record:
    training = Training(task, method_name, seed, user_lr)
    validation, test = training.splits.validation, training.splits.test
    curve, rate = [], None
    for i in range(_CURVE_POINTS):
        training.advance(round(task.steps * (i + 1) / _CURVE_POINTS))
        if training.diverged:
            break
        curve.append([training.done, *map(_short, training.results(validation).values())])
        if i + 1 == _RATE_POINT and training.method.rate is not None:
            rate = _short(training.method.rate())
    train_loss = training.train_loss()
    diverged = training.diverged or not math.isfinite(train_loss)

    def counted(value: float) -> float:
        return task.useless if diverged or not math.isfinite(value) else value

    found = {
        f"{name}_{which}": _short(counted(value))
        for name, part in (("val", validation), ("test", test))
        for which, value in training.results(part).items()
    }
    return {
        "task": task.name,
        "method": method_name,
        "seed": seed,
        "steps": task.steps,
        "user_lr": user_lr,
        "rate": rate,
        "train_loss": _short(train_loss),
        "seconds": _short(training.seconds),
        "diverged": diverged,
        "curve": curve,
        "torch": torch.__version__,
        "commit": commit(),
        **found,
    }


@cache
def commit() -> str | None:
    """Returns the commit of the metacurv that trains, which need not be the one that lies beside this file."""
    return git_commit()


def _short(value: float) -> float:
    """Rounds to six digits, more than a result has."""
    return float(f"{value:.6g}")

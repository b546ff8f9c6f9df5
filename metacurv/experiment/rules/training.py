"""One run: a task from a seed by a method. The loop is the same for all of them."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

import torch

from ..training import Batches
from .catalogue import METHODS
from .methods import Method, Setting
from .tasks import TASKS, Task

_CHECK_EVERY = 50  # steps between looks at whether the loss is finite
_CURVE_POINTS = 20
Record = dict[str, Any]


def run(
    task_name: str, method_name: str, seed: int, *, steps: int | None = None, user_lr: float = 1e-3
) -> Record:
    """Trains and evaluates. The choice between iterates and methods is by "val_*" alone; "test_*" is there to be reported.

    Args:
        task_name: of ``TASKS``.
        method_name: of ``METHODS``.
        seed: of data, initial weights and batches.
        steps: instead of the task's.
        user_lr: what the base optimizer is made with where the method leaves that to the user.

    Returns:
        What ``store`` keeps: plain numbers and strings.
    """
    task = TASKS[task_name] if steps is None else replace(TASKS[task_name], steps=steps)
    splits = task.data(seed)
    model = task.network(seed)
    method = METHODS[method_name](Setting(task, model, splits, seed, user_lr))
    batches = Batches(len(splits.train), task.batch_size, seed)
    train, optimizer = splits.train, method.optimizer
    curve: list[list[float]] = []
    seconds, diverged = 0.0, False
    last: list[torch.Tensor] = []
    for begin, end in _stretches(task.steps):
        started = time.perf_counter()
        for step in range(begin, end):
            rows = batches[step]
            x, y = train.x[rows], train.y[rows]
            method.begin(step, x, y)
            optimizer.zero_grad()
            loss = task.loss_fn(model(x), y)
            method.with_loss(loss)
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            method.step()
            if step >= task.steps - _CHECK_EVERY:
                last.append(loss.detach())
            elif step % _CHECK_EVERY == 0 and not math.isfinite(loss.item()):
                diverged = True
                break
        seconds += time.perf_counter() - started
        if diverged:
            break
        curve.append([end, *_validation(task, method, model, splits.validation)])
    final = float(torch.stack(last).double().mean()) if last else math.nan
    record: Record = {
        "task": task_name,
        "method": method_name,
        "seed": seed,
        "steps": task.steps,
        "user_lr": user_lr,
        "train_loss": final,
        "seconds": seconds,
        "diverged": diverged or not math.isfinite(final),
        "curve": curve,
        "torch": torch.__version__,
    }
    with method.evaluating():
        record |= _results(task, model, splits, "last", record["diverged"])
    if method.averaged is not None:
        with method.averaged():
            record |= _results(task, model, splits, "average", record["diverged"])
    return record


def _stretches(steps: int) -> list[tuple[int, int]]:
    ends = [round(steps * (i + 1) / _CURVE_POINTS) for i in range(_CURVE_POINTS)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _validation(task: Task, method: Method, model: Any, part: Any) -> list[float]:
    """Of the last iterate and, where there is one, the average."""
    with method.evaluating():
        found = [task.result(model, part)]
    if method.averaged is not None:
        with method.averaged():
            found.append(task.result(model, part))
    return found


def _results(task: Task, model: Any, splits: Any, which: str, diverged: bool) -> Record:
    found = {}
    for name, part in (("val", splits.validation), ("test", splits.test)):
        value = task.useless if diverged else task.result(model, part)
        found[f"{name}_{which}"] = value if math.isfinite(value) else task.useless
    return found

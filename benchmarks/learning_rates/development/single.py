"""One run: a development task from a seed by a variant of the rule, or by a point of the reference."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import replace

import torch

from ..part import Part
from ..plan import Run
from ..training import Record, Training, commit
from .plan import check_seeds
from .reference import BEGINS, REFERENCE
from .tasks import TASKS
from .variants import VARIANTS


def train(run: Run) -> Record:
    """Trains and evaluates.

    Args:
        run: the run.

    Returns:
        Plain numbers and strings, as ``store`` keeps them; "rate" is the one that is held when the finish begins, None for the
        reference.

    Raises:
        ValueError: the seed is one on which nothing may be chosen.
    """
    check_seeds([run.seed])
    variant = VARIANTS.get(run.method)
    maker = REFERENCE[run.method] if variant is None else variant
    task = replace(TASKS[run.task], steps=run.steps)
    with (
        torch.random.fork_rng(devices=[]),
        nullcontext() if variant is None else variant.in_place(),
    ):
        torch.default_generator.manual_seed(run.seed)
        training = Training(task, maker.make, run.seed, run.user_lr)
        training.advance(int(BEGINS * task.steps))
        rate = training.method.rate
        held = None if rate is None else rate()
        training.advance(task.steps)
        diverged = training.diverged or not math.isfinite(training.train_loss())
        splits = training.splits
        return {
            "task": run.task,
            "method": run.method,
            "seed": run.seed,
            "steps": run.steps,
            "user_lr": run.user_lr,
            "rate": held,
            "seconds": training.seconds,
            "diverged": diverged,
            "val_last": _result(training, splits.validation, diverged=diverged),
            "test_last": _result(training, splits.test, diverged=diverged),
            "torch": torch.__version__,
            "commit": commit(),
        }


def _result(training: Training, part: Part, *, diverged: bool) -> float:
    """Returns the result of the last iterate, which is what the finish leaves; of a run that diverged, that of no model."""
    value = training.task.useless if diverged else training.results(part)["last"]
    return value if math.isfinite(value) else training.task.useless

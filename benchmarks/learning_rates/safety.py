"""A sweep for safety: whatever the task, the batch size and the base optimizer, training must not end above where it began.

Fifteen tasks, five batch sizes, six base optimizers, five seeds, all with the directional rule. Judged is the loss over up to
1000 training examples at the parameters that the rule hands over, against the loss there before the first step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .part import Part, Splits
from .task import Task, evaluation_mode
from .tasks import TASKS
from .training import Record, Training

FULL = "full"
BATCH_SIZES: tuple[int | str, ...] = (1, 4, 16, 64, FULL)
N_SEEDS = 5
_JUDGED = 1000
# Of the transformer a full batch of its 20000 windows takes ten seconds a step.
_MOST_EXAMPLES = {"transformer": 128}
# Examples that a run may see, which keeps full batches under some ten seconds on one core.
_MOST_SEEN = {"transformer": 12_000, "conv": 400_000, "digits-cnn": 250_000, "mlp-wide": 1_500_000}
_MOST_SEEN_ELSEWHERE = 2_500_000
_FEWEST_STEPS = 100
_RATE_AT = 0.3  # of the steps, as in the comparison


def _muon(model: nn.Module) -> torch.optim.Optimizer:
    """Trains the matrices alone: torch's Muon takes nothing else, and a second optimizer would be beside the rule."""
    matrices = []
    for parameter in model.parameters():
        if parameter.ndim == 2:
            matrices.append(parameter)
        else:
            parameter.requires_grad_(False)
    return torch.optim.Muon(matrices, lr=1e-3, weight_decay=0.0)


BASES: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SGD": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3),
    "SGD, momentum 0.9": lambda model: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
    "Adam": lambda model: torch.optim.Adam(model.parameters(), lr=1e-3),
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01),
    "RMSprop": lambda model: torch.optim.RMSprop(model.parameters(), lr=1e-3),
    "Muon on the matrices": _muon,
}


@dataclass(frozen=True)
class Case:
    """One training of the sweep."""

    task: str
    batch: int | str
    base: str
    seed: int


@dataclass(frozen=True)
class _SafetyTask(Task):
    """A task with another base optimizer."""

    make: Callable[[nn.Module], torch.optim.Optimizer] | None = None

    def optimizer(self, model: nn.Module, lr: float) -> torch.optim.Optimizer:
        assert self.make is not None
        return self.make(model)


def cases(tasks: Iterable[str] = TASKS, seeds: Iterable[int] = range(N_SEEDS)) -> Iterator[Case]:
    """Yields all cases of ``tasks``, seed by seed, so that a sweep that is cut short has seen all of them."""
    for seed in seeds:
        for task in tasks:
            for batch in BATCH_SIZES:
                for base in BASES:
                    yield Case(task, batch, base, seed)


def run(case: Case, steps: int | None = None) -> Record:
    """Trains, and returns plain numbers and strings; ``steps`` instead of the sweep's."""
    task = _task(case, steps)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(case.seed)
        # A user's loop goes on where a loss is not finite, and the guard takes it back.
        training = Training(task, "directional", case.seed, 1e-3, goes_on=True)
        first = _loss(training)
        training.advance(round(_RATE_AT * task.steps))
        rate = training.method.rate
        held = None if rate is None else rate()
        training.advance(task.steps)
        assert training.method.averaged is not None
        with training.method.averaged():
            last = _loss(training)
    return {
        "task": case.task,
        "batch": str(case.batch),
        "base": case.base,
        "seed": case.seed,
        "steps": task.steps,
        "first": first,
        "last": last,
        "rate": held,
        "seconds": training.seconds,
    }


def _task(case: Case, steps: int | None) -> Task:
    task = TASKS[case.task]
    most = _MOST_EXAMPLES.get(task.name)

    def data(seed: int) -> Splits:
        splits = task.data(seed)
        if case.batch != FULL:
            return splits
        return replace(splits, train=Part(splits.train.x[:most], splits.train.y[:most]))

    size = len(data(case.seed).train) if case.batch == FULL else int(case.batch)
    seen = _MOST_SEEN.get(task.name, _MOST_SEEN_ELSEWHERE)
    return _SafetyTask(
        task.name,
        data,
        task.network,
        task.loss_fn,
        task.base,
        size,
        steps or min(task.steps, max(seen // size, _FEWEST_STEPS)),
        task.measure,
        task.outcomes,
        make=BASES[case.base],
    )


@torch.no_grad()
def _loss(training: Training) -> float:
    train: Part = training.splits.train
    x, y = train.x[:_JUDGED], train.y[:_JUDGED]
    with evaluation_mode(training.model):
        loss: Tensor = training.task.loss_fn(training.model(x), y)
    return loss.double().item()

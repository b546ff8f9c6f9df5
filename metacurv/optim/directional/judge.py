"""The loss on some fixed probe batches, by which candidates of a race and the guard are judged."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metacurv.optim.directional.probe_model import ProbeBatch
from metacurv.optim.directional.snapshot import Training
from metacurv.processes.ranks import call_each

_EXAMPLES = 512  # that are enough to tell candidates apart
_LEAST_BATCHES = 8  # whose differences give an error
_PART = 100  # the batches are at most this part of the horizon
_QUICK_EXAMPLES = 64  # that one look takes
_NOISE_BATCHES = 4  # that one look at the noise takes at most
_ERRORS = 2.0  # standard errors of the paired difference that are significant
_MUCH = 0.1  # part of the first loss


@dataclass(frozen=True)
class Verdict:
    """The losses of a training, as a judge measures them.

    Attributes:
        losses: one for each batch, the mean of the iterate's and the average's. The average alone would prefer rates that
            are too large where noise does not average out, the iterate alone rates that are too small where it does.
        noise: the mean loss of the iterate less that of the average: above zero where noise costs more than the average lags
            behind, below where it lags more; 0 where there is no average.
    """

    losses: list[float]
    noise: float


class Judge:
    """Measures the loss of the live training on the same batches again and again; modes, buffers and random state stay.

    Args:
        training: the live training.
        draw: gives a probe batch and its pair of inputs and targets.
        horizon: steps of the training; more steps can afford more batches.
        first: the loss of each batch before the training, from a checkpoint; None to measure them now.

    Attributes:
        first: the loss of each batch that was drawn, before the training. Batches whose loss was not finite then, such as those
            with a broken example, do not judge.

    Raises:
        ValueError: no batch has a finite loss.
    """

    def __init__(
        self,
        training: Training,
        draw: Callable[[], tuple[ProbeBatch, Any]],
        horizon: int,
        first: list[float] | None = None,
    ) -> None:
        self._training, self._draw = training, draw
        drawn: list[ProbeBatch] = []
        examples: list[float] = []
        most, least = max(_LEAST_BATCHES, horizon // _PART), _LEAST_BATCHES
        if first:  # the horizon may be another by now
            least = most = len(first)
        while len(drawn) < most and (len(drawn) < least or sum(examples) < _EXAMPLES):
            batch, count = self._drawn()
            drawn.append(batch)
            examples.append(count)
        self.first = list(first) if first else self._losses(drawn).tolist()
        judging = [i for i, loss in enumerate(self.first) if math.isfinite(loss)]
        if not judging:
            raise ValueError(
                f"loss_fn must be finite on some batch of probe at the first step, got {self.first}"
            )
        self._batches = [drawn[i] for i in judging]
        self._losses_before = [self.first[i] for i in judging]
        # One example of a batch each would tell nothing.
        before = itertools.accumulate((examples[i] for i in judging[:-1]), initial=0.0)
        self._quick = sum(count < _QUICK_EXAMPLES for count in before)
        self.has_few = sum(examples[i] for i in judging) < _EXAMPLES

    def _drawn(self) -> tuple[ProbeBatch, float]:
        """Draws a batch; returns it and its number of examples, the mean of all ranks, which must all take as many batches."""
        batch, pair = self._draw()
        like = torch.empty((), dtype=torch.float64, device=batch.device)
        here = partial(torch.full_like, like, _examples(pair))
        return batch, float(batch.ranks.mean(here, like))

    def first_loss(self, *, quick: bool) -> float:
        """Returns the mean loss before the training, of all batches or of the first few."""
        losses = self._losses_before[: self._quick] if quick else self._losses_before
        return sum(losses) / len(losses)

    def verdict(self) -> Verdict:
        """Measures the iterate and, where one is kept, the average."""
        iterate = self._losses(self._batches)
        if self._training.average is None:
            return Verdict(iterate.tolist(), 0.0)
        averaged = self._losses(self._batches, of_average=True)
        losses = ((iterate + averaged) / 2).tolist()
        return Verdict(losses, float((iterate - averaged).mean()))

    def noise(self, turn: int) -> tuple[float, float, float]:
        """Returns the loss of the average on a few batches, that of the iterate less it, and how far it is below the first.

        Looks take the batches in turn, and ``turn`` is the number of looks before. There must be an average.
        """
        few, count = min(self._quick, _NOISE_BATCHES), len(self._batches)
        taken = [(turn * few + i) % count for i in range(few)]
        batches = [self._batches[i] for i in taken]
        iterate = float(self._losses(batches).mean())
        averaged = float(self._losses(batches, of_average=True).mean())
        first = sum(self._losses_before[i] for i in taken) / few
        return averaged, iterate - averaged, first - averaged

    def finds_alive(self) -> bool:
        """Tells whether the iterate's loss is finite, on the first of the batches."""
        return bool(torch.isfinite(self._losses(self._batches[:1])).all())

    def loss(self, *, of_average: bool, quick: bool) -> float:
        """Returns the mean loss of the iterate, or of the average where one is kept, on all batches or on the first few."""
        batches = self._batches[: self._quick] if quick else self._batches
        return float(self._losses(batches, of_average=of_average).mean())

    def has_learned_much(self) -> bool:
        """Tells whether the iterate's loss is so far below the first one that a few examples are enough to see it."""
        now, first = self._losses(self._batches).tolist(), self.first_loss(quick=False)
        is_much = first - sum(now) / len(now) > _MUCH * abs(first)
        return is_above(self._losses_before, now) and is_much

    def on_more(self) -> Callable[[], list[float]]:
        """Draws more batches, for one comparison; returns a function that gives the iterate's loss on each of them."""
        batches: list[ProbeBatch] = []
        examples = 0.0
        while examples < _EXAMPLES and len(batches) < _EXAMPLES:
            batch, count = self._drawn()
            batches.append(batch)
            examples += count
        return lambda: self._losses(batches).tolist()

    def _losses(self, batches: Sequence[ProbeBatch], *, of_average: bool = False) -> Tensor:
        """Returns the loss of each batch, the mean of all ranks; of the iterate, or of the average where one is kept."""
        average, ranks = self._training.average, batches[0].ranks
        like = torch.empty(len(batches), dtype=torch.float64, device=batches[0].device)
        values = [partial(batch.value, batch_statistics=True) for batch in batches]
        with average.in_place() if of_average and average is not None else nullcontext():
            return ranks.mean(lambda: torch.stack(call_each(values)), like)


def is_above(losses: Sequence[float], others: Sequence[float]) -> bool:
    """Tells whether losses are significantly above others of the same batches.

    The mean of the paired differences must exceed twice its standard error (Student's paired test).
    """
    differences = [a - b for a, b in zip(losses, others, strict=True)]
    n, mean = len(differences), sum(differences) / len(differences)
    if n == 1:
        return mean > 0
    error = math.sqrt(sum((d - mean) ** 2 for d in differences) / (n - 1) / n)
    return mean > _ERRORS * error


def _examples(pair: Any) -> int:
    """Returns the number of examples in a pair of inputs and targets: of classes among its tensors, or their length."""
    tensors = [leaf for leaf in pytree.tree_leaves(pair) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors:
        return 1
    classes = not torch.is_floating_point(tensors[-1])  # one for each place of a text
    return tensors[-1].numel() if classes else len(tensors[0])

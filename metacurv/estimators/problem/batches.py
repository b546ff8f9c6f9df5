"""The batches that a trace is measured over: where they come from, their sizes, and the sum of what they give."""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from metacurv import _validate
from metacurv.processes.ranks import Ranks

_SEED_STEP = 0x9E3779B97F4A7C15  # odd, so that no two batches share a seed
_OTHER_STEP = 0xD1B54A32D192ED03
_MOST = 64  # beyond this number nothing gets faster


def how_many(bytes_each: int, max_memory: int) -> int:
    """Returns how many cotangents of ``bytes_each`` fit into ``max_memory``, one at least."""
    return max(1, min(_MOST, max_memory // max(1, bytes_each)))


def batches(inputs: Any, targets: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the one batch, or those that ``inputs`` gives. Random generators used on the way get their states back."""
    if targets is not None and isinstance(inputs, DataLoader):
        raise TypeError(
            f"targets must be left out where inputs is a DataLoader, which gives them, got {_validate.describe(targets)}"
        )
    _validate.no_data_set("inputs", inputs, "a batch or an iterable of batches")
    is_batch = isinstance(inputs, (Tensor, tuple, Mapping)) or targets is not None
    if is_batch or not isinstance(inputs, Iterable):
        yield inputs, targets
        return
    # A data loader draws seeds and its order while it is iterated over.
    state = torch.get_rng_state()
    own = [
        getattr(inputs, "generator", None),
        getattr(getattr(inputs, "sampler", None), "generator", None),
    ]
    generators = [(g, g.get_state()) for g in own if isinstance(g, torch.Generator)]
    try:
        for index, pair in enumerate(inputs):
            if not isinstance(pair, (tuple, list)) or len(pair) != 2:
                raise TypeError(
                    "inputs must give (inputs, targets) pairs where targets is None, got "
                    f"{_validate.describe(pair)} at {index}; batches of another form can be turned into pairs by a generator"
                )
            yield pair[0], pair[1]
    finally:
        torch.set_rng_state(state)
        for generator, before in generators:
            generator.set_state(before)


def checked_size(inputs: Any, index: int, is_sum: bool, given: Any) -> int:
    """Returns the weight of batch ``index`` among several: its number of examples.

    ``is_sum``: True where batches have no weights. ``given``: that number from the caller, or a function of the inputs.
    """
    if given is not None:
        size = given(inputs) if callable(given) else given
        return _validate.integer("batch_size", size, low=1)
    found = _length(inputs)
    if found is None and index > 0 and not is_sum:
        raise ValueError(
            "inputs must hold a tensor whose length is the number of samples, which several batches are weighted by, got "
            f"{_validate.describe(inputs)} in batch {index} (counted from 0); batch_size= can give that number"
        )
    return 1 if found is None else found


@contextmanager
def in_batch(index: int) -> Iterator[None]:
    """Names, in a ValueError raised within, the batch it was raised in; the first may be the only one and is not named."""
    try:
        yield
    except ValueError as error:
        if index == 0:
            raise
        raise type(error)(f"batch {index} of inputs (counted from 0): {error}") from error


def adds_up(loss_fn: Any) -> bool:
    """Tells whether the loss is a sum over examples, so that batches add up instead of being averaged."""
    keywords = getattr(loss_fn, "keywords", {})  # of a functools.partial
    return bool(getattr(loss_fn, "reduction", keywords.get("reduction")) == "sum")


def batch_size(inputs: Any) -> int:
    """Returns the length of the first tensor in ``inputs`` that has one; 1 where there is none."""
    found = _length(inputs)
    return 1 if found is None else found


def _length(inputs: Any) -> int | None:
    if isinstance(inputs, Tensor):
        return len(inputs) if inputs.dim() else None
    parts: Iterable[Any] = ()
    if isinstance(inputs, Mapping):  # torch's tree functions take some mappings for leaves
        parts = inputs.values()
    elif isinstance(inputs, (tuple, list)):
        parts = inputs
    elif dataclasses.is_dataclass(inputs):
        parts = (getattr(inputs, field.name) for field in dataclasses.fields(inputs))
    elif not pytree.tree_is_leaf(inputs):
        parts = pytree.tree_leaves(inputs)
    return next((size for part in parts if (size := _length(part)) is not None), None)


def batch_seed(seed: int, number: int) -> int:
    """Returns the seed of a batch's probes: the same ones for all batches would tie their errors together."""
    return (seed + number * _SEED_STEP) % (1 << 64)


def two_seeds(seed: int) -> tuple[int, int]:
    """Returns ``seed`` and one that no batch's probes have."""
    return seed, (seed + _OTHER_STEP) % (1 << 64)


@dataclass(frozen=True)
class Summary:
    """Mean and standard error over samples: lists of the parts', then the layers', then the total's.

    ``note``: what was decided on the way, for ``why``.
    """

    mean: list[float]
    stderr: list[float]
    n_samples: int
    converged: bool
    note: str = ""


Found = tuple[str, str, Summary]
"""The method that measured a batch, the reason for it, and what it found."""


class BatchSums:
    """The traces of batches as one: weighted by size, or added up where the loss is a sum; their errors are independent."""

    def __init__(self, *, is_sum: bool) -> None:
        self._is_sum = is_sum
        self._weights: list[int] = []
        self._found: list[Found] = []
        self._of_all: list[float] = []

    @property
    def count(self) -> int:
        """The number of batches, on all processes together once ``over`` has run."""
        return int(self._of_all[-1]) if self._of_all else len(self._found)

    def add(self, size: int, found: Found) -> None:
        """Adds a batch of ``size`` examples."""
        self._weights.append(1 if self._is_sum else size)
        self._found.append(found)

    def over(
        self, ranks: Ranks, measure: Callable[[], None], columns: int, device: torch.device
    ) -> None:
        """Calls ``measure``, which adds this process's batches, and takes those of all ranks for the result.

        Args:
            ranks: the processes that measure together, which must all call.
            measure: measures here.
            columns: the number of values of a batch: parts, layers and the total.
            device: the device that the ranks exchange numbers by.
        """

        def numbers() -> Tensor:
            measure()
            return torch.tensor(self._numbers(), dtype=torch.float64, device=device)

        like = torch.empty(2 * columns + 4, dtype=torch.float64, device=device)
        self._of_all = (ranks.mean(numbers, like) * ranks.count).tolist()

    def _numbers(self) -> list[float]:
        """Returns numbers that add up over batches and processes: weighted means, squared errors, and four counts."""
        summaries = [summary for _, _, summary in self._found]
        means = zip(*(summary.mean for summary in summaries), strict=True)
        errors = zip(*(summary.stderr for summary in summaries), strict=True)
        return [
            *(sum(map(operator.mul, self._weights, values)) for values in means),
            *(sum((w * e) ** 2 for w, e in zip(self._weights, es, strict=True)) for es in errors),
            sum(self._weights),
            sum(summary.n_samples for summary in summaries),
            sum(not summary.converged for summary in summaries),
            len(summaries),
        ]

    @property
    def combined(self) -> Summary:
        """Mean, standard error, samples of all batches, and whether each of them converged."""
        if not self._of_all and len(self._found) == 1:
            return self._found[0][-1]
        *sums, weight, samples, failed, _ = self._of_all or self._numbers()
        by, n = 1.0 if self._is_sum else weight, len(sums) // 2
        mean = [value / by for value in sums[:n]]
        error = [math.sqrt(square) / by for square in sums[n:]]
        return Summary(mean, error, round(samples), converged=not failed)

    @property
    def method(self) -> str:
        """The methods of this process's batches."""
        return " and ".join(dict.fromkeys(method for method, _, _ in self._found))

    @property
    def why(self) -> str:
        """The reasons for them."""
        return " | ".join(dict.fromkeys(why for _, why, _ in self._found))

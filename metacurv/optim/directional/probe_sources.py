"""The sources that the batches of a probe come from: a loader, its data set, a list, an iterable or a function."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    default_collate,
)
from torch.utils.data.distributed import DistributedSampler

from metacurv import _validate

LATER = "later"  # a probe that is handed over before the first step
EXPECTED = "a DataLoader, an iterable of (inputs, targets) pairs that can be begun again, or a function that returns one pair"


class Source(ABC):
    """A source of batches that is read in rounds, again and again.

    ``length`` is the number of items in a round, None where only the end of the round tells it.
    """

    length: int | None = None
    runs_foreign_code = True  # the user's code, which may draw random numbers

    @abstractmethod
    def items(self, generator: torch.Generator) -> Iterator[Any]:
        """Iterates over the items of one round, in the order that ``generator`` decides."""

    def batch(self, item: Any) -> Any:
        """Returns the batch that an item stands for."""
        return item


class Later(Source):
    """Stands for a probe that a framework's callback hands over before the first step."""

    def items(self, generator: torch.Generator) -> Iterator[Any]:
        """Raises RuntimeError, as nothing can be drawn yet."""
        raise RuntimeError(
            f"probe={LATER!r} must be handed over before the first step, by the callback of metacurv.integrations for your "
            "framework; got a step without it"
        )


class _Function(Source):
    length = 1

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def items(self, generator: torch.Generator) -> Iterator[Any]:
        return iter((None,))

    def batch(self, item: Any) -> Any:
        return self._function()


class _Repeated(Source):
    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterable = iterable

    def items(self, generator: torch.Generator) -> Iterator[Any]:
        return iter(self._iterable)


class _Shuffled(Source):
    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches, self.length = batches, len(batches)

    def items(self, generator: torch.Generator) -> Iterator[int]:
        return iter(torch.randperm(len(self._batches), generator=generator).tolist())

    def batch(self, item: int) -> Any:
        return self._batches[item]


class _OfLoader(Source):
    """Draws batches of the loader's size and kind from its data set; the loader's sampler stays with the training loop."""

    def __init__(self, loader: DataLoader[Any], batch_size: int) -> None:
        data: Any = loader.dataset
        self._data, self._collate, n = data, loader.collate_fn, len(data)
        if n == 0:
            raise ValueError("probe must hold at least one example, got an empty data set")
        self._size = min(batch_size, n)
        self.length = n // self._size
        is_plain = type(data) is TensorDataset and self._collate is default_collate
        self.runs_foreign_code = not is_plain

    def items(self, generator: torch.Generator) -> Iterator[Tensor]:
        order = torch.randperm(len(self._data), generator=generator)
        return (order[i * self._size : (i + 1) * self._size] for i in range(self.length or 0))

    def batch(self, item: Tensor) -> Any:
        if not self.runs_foreign_code:
            return [tensor[item.to(tensor.device)] for tensor in self._data.tensors]
        rows = item.tolist()
        many = getattr(self._data, "__getitems__", None)
        batch = self._collate(many(rows) if many is not None else [self._data[row] for row in rows])
        if self._collate is default_collate and isinstance(batch, list) and len(batch) == 2:
            # torch's own collation makes lists of the tuples that a data set gives.
            return [tuple(part) if type(part) is list else part for part in batch]
        return batch


def _of_loader(loader: DataLoader[Any]) -> Source:
    """Draws from the whole data set where the loader does; where a sampler selects, its selection is kept."""
    batches: Any = loader.batch_sampler
    while batches is not None and hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler  # the part of one process, as Accelerate makes it
    if not isinstance(loader.dataset, IterableDataset) and type(batches) is BatchSampler:
        sampler = batches.sampler
        is_plain = type(sampler) in (SequentialSampler, RandomSampler, DistributedSampler)
        is_seedable = type(sampler).__name__ == "SeedableRandomSampler"
        if is_plain or (is_seedable and isinstance(sampler, RandomSampler)):
            return _OfLoader(loader, batches.batch_size)
    return _Repeated(_apart(loader))


def _apart(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Returns a loader of the same batches whose iteration leaves ``loader`` alone, its workers, sampler and random numbers."""
    if type(loader).__iter__ is not DataLoader.__iter__:
        return loader  # what it iterates over is its own affair
    data: Any = loader.dataset
    how: dict[str, Any] = {"collate_fn": loader.collate_fn}
    same_data = {id(data): data}  # the copy of a sampler draws from
    try:
        if isinstance(data, IterableDataset):
            how |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        elif loader.batch_sampler is None:
            how |= {"batch_size": None, "sampler": copy.deepcopy(loader.sampler, same_data)}
        else:
            how["batch_sampler"] = copy.deepcopy(loader.batch_sampler, same_data)
    except Exception as error:
        raise TypeError(
            f"probe must have a sampler that copy.deepcopy can copy, got {_validate.describe(loader.sampler)}: the training "
            "loop's own is not to be disturbed"
        ) from error
    return DataLoader(data, **how)


def source_of(probe: Any) -> Source:
    """Returns the source of the batches of a probe.

    Raises:
        TypeError: ``probe`` is of a type that no batches can be drawn from.
        ValueError: ``probe`` is empty.
    """
    if probe is None:
        raise TypeError(f"probe must be given with rule='directional': {EXPECTED}; got none")
    if isinstance(probe, str) and probe == LATER:
        return Later()
    inner = getattr(probe, "base_dataloader", None)
    if isinstance(inner, DataLoader):
        probe = inner  # iterating over what Accelerate has prepared counts the user's epochs
    if isinstance(probe, DataLoader):
        return _of_loader(probe)
    if isinstance(probe, Tensor) or (
        isinstance(probe, (tuple, list)) and any(isinstance(part, Tensor) for part in probe)
    ):
        raise TypeError(
            f"probe must be {EXPECTED}, got a {type(probe).__name__}; DataLoader(TensorDataset(inputs, targets), "
            "batch_size=...) makes batches of tensors"
        )
    _validate.no_data_set("probe", probe, EXPECTED)
    is_text = isinstance(probe, str)
    if isinstance(probe, Sequence) and not is_text:
        if not probe:
            raise ValueError(f"probe must be {EXPECTED}, got an empty {type(probe).__name__}")
        return _Shuffled(probe)
    if isinstance(probe, Iterator):
        raise TypeError(
            f"probe must be {EXPECTED}, got {_validate.describe(probe)}, which can be gone through once"
        )
    if isinstance(probe, Iterable) and not is_text:
        return _Repeated(probe)
    if callable(probe) and not isinstance(probe, type):
        return _Function(probe)
    raise TypeError(f"probe must be {EXPECTED}, got {_validate.describe(probe)}")

"""The batches that the directional rule measures on, drawn apart from the training loop's in an order of their own."""

from __future__ import annotations

import copy
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
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

_END = object()
LATER = "later"  # a probe that is handed over before the first step
LABELS = ("labels", "label")  # where a batch that is a mapping has its targets
BatchFunction = Callable[[Any], Any]
"""Makes a pair (inputs, targets) of a batch."""
_EXPECTED = "a DataLoader, an iterable of (inputs, targets) pairs that can be begun again, or a function that returns one pair"


class ProbeBatches:
    """Draws (inputs, targets) pairs, which depend on the seed and on the number of batches drawn before.

    Args:
        probe: see ``MetaCurvatureLR``.
        seed: the seed of the order, where this class chooses the order.
        batch_fn: makes a pair of what ``probe`` gives; None to take a pair as it is, and a mapping apart (see ``as_pair``).

    Raises:
        TypeError: ``probe`` is of a type that no batches can be drawn from.
        ValueError: ``probe`` is empty.
    """

    def __init__(self, probe: Any, seed: int, batch_fn: BatchFunction | None = None) -> None:
        self._source, self._batch_fn = _source_of(probe), batch_fn
        self._convert: BatchFunction | None = None
        self.go_to(0, seed=seed)

    @property
    def is_to_come(self) -> bool:
        """True where a framework has still to hand the probe over."""
        return isinstance(self._source, _Later)

    def take(self, probe: Any, convert: BatchFunction | None = None) -> None:
        """Draws from ``probe`` from now on; ``convert`` makes of each batch what the training loop makes of it."""
        self._source, self._convert = _source_of(probe), convert
        self.go_to(self._drawn, seed=self._seed)

    @property
    def drawn(self) -> int:
        """The number of batches drawn so far."""
        return self._drawn

    def draw(self, device: torch.device) -> tuple[Any, Any]:
        """Returns the next batch, on ``device``; the global random states are as before.

        Raises:
            TypeError: ``probe`` gave something other than a pair.
            ValueError: ``probe`` gave nothing.
        """
        with self._randomness():
            batch = self._source.batch(self._next_item())
            if self._convert is not None:
                batch = self._convert(batch)
            pair = as_pair(batch) if self._batch_fn is None else self._batch_fn(batch)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            by = "probe" if self._batch_fn is None else "batch_fn"
            way = "; batch_fn= can make pairs" if self._batch_fn is None else ""
            raise TypeError(
                f"{by} must give (inputs, targets) pairs, got {_validate.describe(pair)}{way}"
            )
        self._drawn += 1
        return _on(device, pair[0]), _on(device, pair[1])

    def go_to(self, drawn: int, *, seed: int) -> None:
        """Continues as after ``drawn`` batches under ``seed``.

        A plain iterable is iterated again up to there; a function is not called.
        """
        self._seed, self._drawn, self._round = seed, drawn, -1
        self._items: Iterator[Any] = iter(())
        length = self._source.length
        if length is not None:  # whole rounds are skipped
            self._round, drawn = drawn // length - 1, drawn % length
        target = self._drawn
        for self._drawn in range(target - drawn, target):
            with self._randomness():
                self._next_item()
        self._drawn = target

    def _randomness(self) -> AbstractContextManager[None]:
        """Seeds the random generators that foreign code may use, from the seed and the number of batches drawn before."""
        if not self._source.runs_foreign_code:
            return nullcontext()
        return _own_randomness(_mixed(self._seed, self._drawn))

    def _next_item(self) -> Any:
        item = next(self._items, _END)
        if item is _END:
            self._round += 1
            self._items = self._source.items(_generator(self._seed, self._round))
            item = next(self._items, _END)
        if item is not _END:
            return item
        raise ValueError(
            f"probe must be {_EXPECTED}, got one with no batch" + (" left" if self._drawn else "")
        )

    def __getstate__(self) -> dict[str, Any]:
        names = ("_seed", "_source", "_drawn", "_batch_fn", "_convert")
        return {name: getattr(self, name) for name in names}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._source, self._batch_fn = state["_source"], state["_batch_fn"]
        self._convert = state["_convert"]
        self.go_to(state["_drawn"], seed=state["_seed"])


def as_pair(batch: Any) -> Any:
    """Takes the labels out of a mapping, as transformers' batches are, and leaves anything else as it is."""
    if not isinstance(batch, Mapping):
        return batch
    for name in LABELS:
        if name in batch:
            return {key: value for key, value in batch.items() if key != name}, batch[name]
    return batch


class _Source(ABC):
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


class _Later(_Source):
    """Stands for a probe that a framework's callback hands over before the first step."""

    def items(self, generator: torch.Generator) -> Iterator[Any]:
        raise RuntimeError(
            f"probe={LATER!r} must be handed over before the first step, by the callback of metacurv.integrations for your "
            "framework; got a step without it"
        )


class _Function(_Source):
    length = 1

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function

    def items(self, generator: torch.Generator) -> Iterator[Any]:
        return iter((None,))

    def batch(self, item: Any) -> Any:
        return self._function()


class _Repeated(_Source):
    def __init__(self, iterable: Iterable[Any]) -> None:
        self._iterable = iterable

    def items(self, generator: torch.Generator) -> Iterator[Any]:
        return iter(self._iterable)


class _Shuffled(_Source):
    def __init__(self, batches: Sequence[Any]) -> None:
        self._batches, self.length = batches, len(batches)

    def items(self, generator: torch.Generator) -> Iterator[int]:
        return iter(torch.randperm(len(self._batches), generator=generator).tolist())

    def batch(self, item: int) -> Any:
        return self._batches[item]


class _OfLoader(_Source):
    """Draws batches of the loader's size and kind from its data set; the loader's sampler stays with the training loop."""

    def __init__(self, loader: DataLoader[Any], batch_size: int) -> None:
        data: Any = loader.dataset
        self._data, self._collate, n = data, loader.collate_fn, len(data)
        if n == 0:
            raise ValueError("probe must hold at least one example, got an empty data set")
        self._size = min(batch_size, n)
        self.length = n // self._size
        is_plain = type(self._data) is TensorDataset and self._collate is default_collate
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


def _plain_batch_size(loader: DataLoader[Any]) -> int | None:
    """Returns the batch size of a loader that draws from its whole data set; where a sampler selects, its selection is kept."""
    batches: Any = loader.batch_sampler
    while batches is not None and hasattr(batches, "batch_sampler"):
        batches = batches.batch_sampler  # the part of one process, as Accelerate makes it
    if isinstance(loader.dataset, IterableDataset) or type(batches) is not BatchSampler:
        return None
    sampler = batches.sampler
    plain = type(sampler) in (SequentialSampler, RandomSampler, DistributedSampler) or (
        type(sampler).__name__ == "SeedableRandomSampler" and isinstance(sampler, RandomSampler)
    )
    return batches.batch_size if plain else None


def _apart(loader: DataLoader[Any]) -> DataLoader[Any]:
    """Returns a loader of the same batches whose iteration leaves ``loader`` alone, its workers, sampler and random numbers."""
    if type(loader).__iter__ is not DataLoader.__iter__:
        return loader  # what it iterates over is its own affair
    data: Any = loader.dataset
    how: dict[str, Any] = {"collate_fn": loader.collate_fn}
    try:
        if isinstance(data, IterableDataset):
            how |= {"batch_size": loader.batch_size, "drop_last": loader.drop_last}
        elif loader.batch_sampler is None:
            how |= {"batch_size": None, "sampler": _copied(loader.sampler, data)}
        else:
            how["batch_sampler"] = _copied(loader.batch_sampler, data)
    except Exception as error:
        raise TypeError(
            f"probe must have a sampler that copy.deepcopy can copy, got {_validate.describe(loader.sampler)}: the training "
            "loop's own is not to be disturbed"
        ) from error
    return DataLoader(data, **how)


def _copied(sampler: Any, data: Any) -> Any:
    """Returns a copy of a sampler that draws from the same data set."""
    return copy.deepcopy(sampler, {id(data): data})


def _seen_through(probe: Any) -> Any:
    """Returns the loader inside of one that Accelerate has prepared, whose iteration counts the user's epochs."""
    inner = getattr(probe, "base_dataloader", None)
    return inner if isinstance(inner, DataLoader) else probe


def _source_of(probe: Any) -> _Source:
    if probe is None:
        raise TypeError(f"probe must be given with rule='directional': {_EXPECTED}; got none")
    if isinstance(probe, str) and probe == LATER:
        return _Later()
    probe = _seen_through(probe)
    if isinstance(probe, DataLoader):
        size = _plain_batch_size(probe)
        return _Repeated(_apart(probe)) if size is None else _OfLoader(probe, size)
    if isinstance(probe, Tensor) or (
        isinstance(probe, (tuple, list)) and any(isinstance(part, Tensor) for part in probe)
    ):
        raise TypeError(
            f"probe must be {_EXPECTED}, got a {type(probe).__name__}; DataLoader(TensorDataset(inputs, targets), "
            "batch_size=...) makes batches of tensors"
        )
    _validate.no_data_set("probe", probe, _EXPECTED)
    if isinstance(probe, Sequence) and not isinstance(probe, str):
        if not probe:
            raise ValueError(f"probe must be {_EXPECTED}, got an empty {type(probe).__name__}")
        return _Shuffled(probe)
    if isinstance(probe, Iterator):
        raise TypeError(
            f"probe must be {_EXPECTED}, got {_validate.describe(probe)}, which can be gone through once"
        )
    if isinstance(probe, Iterable) and not isinstance(probe, str):
        return _Repeated(probe)
    if callable(probe) and not isinstance(probe, type):
        return _Function(probe)
    raise TypeError(f"probe must be {_EXPECTED}, got {_validate.describe(probe)}")


def _generator(seed: int, number: int) -> torch.Generator:
    """Returns the random generator of round ``number``."""
    return torch.Generator().manual_seed(_mixed(seed, number))


def _mixed(seed: int, number: int) -> int:
    """Mixes both numbers into 32 bits, which is what torch's CPU generator keeps: SplitMix64 (Steele, Lea, Flood 2014)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) % (1 << 64)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    z = (z ^ z >> 27) * 0x94D049BB133111EB % (1 << 64)
    return (z ^ z >> 31) & 0xFFFFFFFF


def _on(device: torch.device, value: Any) -> Any:
    def move(leaf: Any) -> Any:
        return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

    return move(value) if isinstance(value, Tensor) else pytree.tree_map(move, value)


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeds the global generators, any of which a data set may augment with, and puts their states back at the end."""
    numpy = _numpy_random()
    python, cpu = random.getstate(), torch.get_rng_state()
    legacy = None if numpy is None else numpy.get_state()
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    if numpy is not None:
        numpy.seed(seed)
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if numpy is not None:
            numpy.set_state(legacy)


def _numpy_random() -> Any:
    """Returns ``numpy.random`` where somebody has imported numpy, else None: nobody can have drawn from it."""
    return sys.modules.get("numpy.random")

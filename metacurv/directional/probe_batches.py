"""The batches that the directional rule measures on, drawn apart from the training loop's in an order of their own."""

from __future__ import annotations

import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
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

from metacurv import _validate

_END = object()
_EXPECTED = "a DataLoader, an iterable of (inputs, targets) pairs that can be begun again, or a function that returns one pair"


class ProbeBatches:
    """Draws (inputs, targets) pairs, which depend on the seed and on the number of batches drawn before.

    Args:
        probe: see ``MetaCurvatureLR``.
        seed: the seed of the order, where this class chooses the order.

    Raises:
        TypeError: ``probe`` is of a type that no batches can be drawn from.
        ValueError: ``probe`` is empty.
    """

    def __init__(self, probe: Any, seed: int) -> None:
        self._source = _source_of(probe)
        self.go_to(0, seed=seed)

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
            pair = self._source.batch(self._next_item())
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(
                f"probe must give (inputs, targets) pairs, got {_validate.describe(pair)}"
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
        return {"_seed": self._seed, "_source": self._source, "_drawn": self._drawn}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._source = state["_source"]
        self.go_to(state["_drawn"], seed=state["_seed"])


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

    def __init__(self, loader: DataLoader[Any]) -> None:
        data: Any = loader.dataset
        self._data, self._collate, n = data, loader.collate_fn, len(data)
        if n == 0:
            raise ValueError("probe must hold at least one example, got an empty data set")
        assert loader.batch_size is not None
        self._size = min(loader.batch_size, n)
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


def _is_plain(loader: DataLoader[Any]) -> bool:
    """Tells whether the loader draws from its whole data set; where a sampler selects examples, its selection must be kept."""
    plain = (SequentialSampler, RandomSampler)
    return (
        not isinstance(loader.dataset, IterableDataset)
        and loader.batch_size is not None
        and type(loader.sampler) in plain
        and type(loader.batch_sampler) is BatchSampler
    )


def _source_of(probe: Any) -> _Source:
    if probe is None:
        raise TypeError(f"probe must be given with rule='directional': {_EXPECTED}; got none")
    if isinstance(probe, DataLoader) and _is_plain(probe):
        return _OfLoader(probe)
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

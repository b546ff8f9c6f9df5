"""The batches that the directional rule measures on: drawn apart from the training loop's, in an order of their own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, IterableDataset

from metacurv import _validate

_EXPECTED = (
    "a DataLoader, an iterable of (inputs, targets) pairs that can be begun again, or a function that returns one pair"
)


class ProbeBatches:
    """Draws (inputs, targets), as often as asked. What is drawn depends on the seed and the number of batches drawn before.

    Args:
        probe: see ``MetaCurvatureLR``.
        seed: of the order, where that is this class's to choose.

    Raises:
        TypeError, ValueError: ``probe`` is nothing that batches can be drawn from.
    """

    def __init__(self, probe: Any, seed: int) -> None:
        self._seed = seed
        self._drawn = 0
        self._source = _source_of(probe)
        self._round = -1
        self._order: Iterator[Any] = iter(())

    def draw(self, device: torch.device) -> tuple[Any, Any]:
        """The next batch, on ``device``; the global random states are as before.

        Raises:
            TypeError: what comes is no pair.
            ValueError: there is none.
        """
        with _global_randomness_kept():
            pair = self._next()
        self._drawn += 1
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise TypeError(f"probe must give (inputs, targets) pairs, got {_validate.describe(pair)}")
        inputs, targets = pair
        return _on(device, inputs), _on(device, targets)

    def state(self) -> int:
        """How many were drawn."""
        return self._drawn

    def load(self, drawn: int) -> None:
        """Goes on after ``drawn`` batches. A plain iterable is gone through again up to there; a function is not called."""
        self._drawn, self._round, self._order = drawn, -1, iter(())
        if isinstance(self._source, _Rounds) and drawn:
            self._drawn = 0
            with _global_randomness_kept():
                while self._drawn < drawn:
                    self._skip(drawn)

    def _skip(self, drawn: int) -> None:
        source = self._source
        assert isinstance(source, _Rounds)
        if source.length is not None:  # whole rounds need not be gone through
            self._round = drawn // source.length - 1
            self._drawn = (self._round + 1) * source.length
            if self._drawn == drawn:
                return
        for _ in range(drawn - self._drawn):
            self._next(fetch=False)
        self._drawn = drawn

    def _next(self, fetch: bool = True) -> Any:
        if not isinstance(self._source, _Rounds):
            return self._source()
        for item in self._order:
            return self._source.fetch(item) if fetch else None
        self._round += 1
        self._order = self._source.begin(_generator(self._seed, self._round))
        for item in self._order:
            return self._source.fetch(item) if fetch else None
        raise ValueError(
            f"probe must be {_EXPECTED}, got one with no batch" + (" left" if self._drawn else "")
        )


class _Rounds:
    """Something gone through round by round: ``begin`` gives the items of a round, ``fetch`` makes a batch of one.

    ``length``: items in a round, None where that is known only at its end.
    """

    def __init__(
        self,
        begin: Callable[[torch.Generator], Iterator[Any]],
        fetch: Callable[[Any], Any],
        length: int | None,
    ) -> None:
        self.begin, self.fetch, self.length = begin, fetch, length


def _source_of(probe: Any) -> _Rounds | Callable[[], Any]:
    if isinstance(probe, DataLoader) and not isinstance(probe.dataset, IterableDataset):
        return _of_loader(probe)
    if isinstance(probe, Tensor) or (
        isinstance(probe, (tuple, list)) and any(isinstance(part, Tensor) for part in probe)
    ):
        raise TypeError(
            f"probe must be {_EXPECTED}, got {_validate.describe(type(probe))}; DataLoader(TensorDataset(inputs, targets), "
            "batch_size=...) makes batches of tensors"
        )
    if isinstance(probe, Sequence) and not isinstance(probe, (str, bytes)):
        if not probe:
            raise ValueError(f"probe must be {_EXPECTED}, got an empty {type(probe).__name__}")
        return _Rounds(lambda g: _permuted(len(probe), g), probe.__getitem__, len(probe))
    if isinstance(probe, Iterable):
        return _Rounds(lambda _: iter(probe), lambda item: item, None)
    if callable(probe) and not isinstance(probe, type):
        return probe
    raise TypeError(f"probe must be {_EXPECTED}, got {_validate.describe(probe)}")


def _of_loader(loader: DataLoader[Any]) -> _Rounds:
    """Batches of the loader's size and kind from its data set, whatever its sampler: it must not be drawn from behind the loop."""
    data: Any = loader.dataset
    if not isinstance(data, Sized):
        raise TypeError(f"probe.dataset must have a length, got {_validate.describe(type(data))}")
    n = len(data)
    size = min(loader.batch_size or getattr(loader.batch_sampler, "batch_size", None) or 1, n)
    if n == 0:
        raise ValueError("probe must hold at least one example, got an empty data set")
    collate = loader.collate_fn

    def begin(generator: torch.Generator) -> Iterator[list[int]]:
        order = torch.randperm(n, generator=generator).tolist()
        return iter([order[i : i + size] for i in range(0, n - size + 1, size)])

    def fetch(rows: list[int]) -> Any:
        if type(data) is torch.utils.data.TensorDataset and collate is torch.utils.data.default_collate:
            return [tensor[rows] for tensor in data.tensors]
        many = getattr(data, "__getitems__", None)
        return collate(many(rows) if many is not None else [data[row] for row in rows])

    return _Rounds(begin, fetch, n // size)


def _permuted(n: int, generator: torch.Generator) -> Iterator[int]:
    return iter(torch.randperm(n, generator=generator).tolist())


def _generator(seed: int, number: int) -> torch.Generator:
    """Of round ``number``. SplitMix64 (Steele, Lea, Flood 2014) mixes the two into 64 bits; torch's generator keeps 32 of them."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) % (1 << 64)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    z = (z ^ z >> 27) * 0x94D049BB133111EB % (1 << 64)
    return torch.Generator().manual_seed((z ^ z >> 31) & 0xFFFFFFFF)


def _on(device: torch.device, value: Any) -> Any:
    def move(leaf: Any) -> Any:
        return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

    return move(value) if isinstance(value, Tensor) else pytree.tree_map(move, value)


@contextmanager
def _global_randomness_kept() -> Iterator[None]:
    """A data set may augment with any of them."""
    numpy = _numpy_random()
    python, cpu = random.getstate(), torch.get_rng_state()
    legacy = None if numpy is None else numpy.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        torch.set_rng_state(cpu)
        if numpy is not None:
            numpy.set_state(legacy)


def _numpy_random() -> Any:
    """``numpy.random`` where somebody has imported numpy; nobody draws from it before."""
    import sys

    return sys.modules.get("numpy.random")

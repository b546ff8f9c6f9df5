"""The batches that the directional rule measures on, drawn apart from the training loop's in an order of their own."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metacurv import _validate
from metacurv.optim.directional.probe_sources import EXPECTED, Later, source_of

_END = object()
_LABELS = ("labels", "label")  # where a batch that is a mapping has its targets
BatchFunction = Callable[[Any], Any]


class ProbeBatches:
    """Draws (inputs, targets) pairs, which depend on the seed and on the number of batches drawn before.

    Args:
        probe: see ``MetaCurvatureLR``.
        seed: the seed of the order, where this class chooses the order.
        batch_fn: makes a pair of what ``probe`` gives; None to take a pair as it is, and the labels out of a mapping.

    Raises:
        TypeError: ``probe`` is of a type that no batches can be drawn from.
        ValueError: ``probe`` is empty.
    """

    def __init__(self, probe: Any, seed: int, batch_fn: BatchFunction | None = None) -> None:
        self._source, self._batch_fn = source_of(probe), batch_fn
        self._convert: BatchFunction | None = None
        self.go_to(0, seed=seed)

    @property
    def is_to_come(self) -> bool:
        """True where a framework has still to hand the probe over."""
        return isinstance(self._source, Later)

    def take(self, probe: Any, convert: BatchFunction | None = None) -> None:
        """Draws from ``probe`` from now on; ``convert`` makes of each batch what the training loop makes of it."""
        self._source, self._convert = source_of(probe), convert
        self.go_to(self.drawn, seed=self._seed)

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
            pair = _as_pair(batch) if self._batch_fn is None else self._batch_fn(batch)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            by = "probe" if self._batch_fn is None else "batch_fn"
            way = "; batch_fn= can make pairs" if self._batch_fn is None else ""
            raise TypeError(
                f"{by} must give (inputs, targets) pairs, got {_validate.describe(pair)}{way}"
            )
        self.drawn += 1

        def moved(leaf: Any) -> Any:
            return leaf.to(device, non_blocking=True) if isinstance(leaf, Tensor) else leaf

        inputs, targets = (pytree.tree_map(moved, part) for part in pair)
        return inputs, targets

    def go_to(self, drawn: int, *, seed: int) -> None:
        """Continues as after ``drawn`` batches under ``seed``.

        A plain iterable is iterated again up to there; a function is not called.
        """
        self._seed, self._round = seed, -1
        self._items: Iterator[Any] = iter(())
        target, length = drawn, self._source.length
        if length is not None:  # whole rounds are skipped
            self._round, drawn = drawn // length - 1, drawn % length
        for self.drawn in range(target - drawn, target):
            with self._randomness():
                self._next_item()
        self.drawn = target

    def _randomness(self) -> AbstractContextManager[None]:
        """Seeds the random generators that foreign code may use, from the seed and the number of batches drawn before."""
        if not self._source.runs_foreign_code:
            return nullcontext()
        return _own_randomness(_mixed(self._seed, self.drawn))

    def _next_item(self) -> Any:
        item = next(self._items, _END)
        if item is _END:
            self._round += 1
            generator = torch.Generator().manual_seed(_mixed(self._seed, self._round))
            self._items = self._source.items(generator)
            item = next(self._items, _END)
        if item is not _END:
            return item
        raise ValueError(
            f"probe must be {EXPECTED}, got one with no batch" + (" left" if self.drawn else "")
        )

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_items"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.go_to(self.drawn, seed=self._seed)


def _as_pair(batch: Any) -> Any:
    """Takes the labels out of a mapping, as transformers' batches are, and leaves anything else as it is."""
    for name in _LABELS:
        if isinstance(batch, Mapping) and name in batch:
            return {key: value for key, value in batch.items() if key != name}, batch[name]
    return batch


def _mixed(seed: int, number: int) -> int:
    """Mixes both numbers into 32 bits, which is what torch's CPU generator keeps: SplitMix64 (Steele, Lea, Flood 2014)."""
    z = (seed + (number + 1) * 0x9E3779B97F4A7C15) % (1 << 64)
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % (1 << 64)
    z = (z ^ z >> 27) * 0x94D049BB133111EB % (1 << 64)
    return (z ^ z >> 31) & 0xFFFFFFFF


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeds the global generators, any of which a data set may augment with, and puts their states back at the end."""
    numpy: Any = sys.modules.get(
        "numpy.random"
    )  # where nobody has imported it nobody draws from it
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

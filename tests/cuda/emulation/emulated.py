"""The emulated ops, called from Python, and the schedules they are run under."""

from __future__ import annotations

import ctypes
import math
import mmap
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.cuda.emulation.build import SOURCES

NAMESPACE = "metacurv_emulated"


@dataclass(frozen=True)
class Schedule:
    """The order in which threads and blocks take turns.

    Attributes:
        order: "ascending", "descending" or "random".
        seed: of the random choices.
        resident: blocks that take turns at any barrier or shuffle; 1: each runs to its end.
        workers: host threads that blocks are dealt out to.
    """

    order: str
    seed: int = 0
    resident: int = 1
    workers: int = 1


SCHEDULES = [
    Schedule("ascending"),
    Schedule("descending"),
    *(Schedule("random", seed) for seed in range(8)),
    Schedule("random", 8, resident=3),
    Schedule("descending", 9, resident=2),
]
SEED, PROBE = -3, torch.tensor(2**32 - 2)  # the seed's 64 bits as torch passes them
_ORDERS = ("ascending", "descending", "random")


def whole_numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Of which thousands add up exactly in every dtype that sums are taken in."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-8, 9, shape, generator=generator).to(dtype)


def schemas() -> dict[str, str]:
    """Of the ops in ``csrc/ops.cpp``: name with overload -> schema."""
    text = (SOURCES / "ops.cpp").read_text()
    found = re.findall(r'm\.def\(\s*((?:"[^"]*"\s*)+)\)', text)
    whole = ["".join(re.findall(r'"([^"]*)"', literals)) for literals in found]
    return {schema.partition("(")[0]: schema for schema in whole}


class EmulatedOps:
    """The ops of a library that ``build`` made. A process can load one.

    Ops are attributes: ``ops.signed_sum(tensors, seed, probe, numbers, offsets)`` has the arguments of its schema.
    The memory that an op makes, for results and partial sums, begins as NaN; where only some blocks run, as 0, which adds
    nothing to the sums of the others.
    """

    def __init__(self, library: Path) -> None:
        self._definitions = torch.library.Library(NAMESPACE, "DEF")
        for schema in schemas().values():
            self._definitions.define(schema)
        torch.ops.load_library(str(library))
        self._c = ctypes.CDLL(str(library))
        self._c.emulation_launches.argtypes = [ctypes.POINTER(ctypes.c_uint32), ctypes.c_size_t]
        self._c.emulation_launches.restype = ctypes.c_size_t
        self._c.emulation_blocks.argtypes = [ctypes.POINTER(ctypes.c_uint32), ctypes.c_size_t]
        self._new_memory = _new_memory_is_nan

    def __getattr__(self, name: str) -> Callable[..., Any]:
        # Without ``default`` torch would take a probe, which has no dimensions, for a number.
        op = getattr(getattr(torch.ops, NAMESPACE), name).default

        def run(*arguments: Any) -> Any:
            with self._new_memory():
                return op(*arguments)

        return run

    @contextmanager
    def under(self, schedule: Schedule) -> Iterator[None]:
        """Ops run in that order within the block."""
        set_schedule(self._c, schedule)
        try:
            yield
        finally:
            set_schedule(self._c, SCHEDULES[0])

    @contextmanager
    def only_blocks(self, blocks: Sequence[int]) -> Iterator[None]:
        """Of every launch within the block, the thread blocks with these indices run, and no others."""
        self._c.emulation_blocks((ctypes.c_uint32 * len(blocks))(*blocks), len(blocks))
        self._new_memory = _new_memory_is_zero
        try:
            yield
        finally:
            self._new_memory = _new_memory_is_nan
            self._c.emulation_blocks(None, 0)

    def launches(self) -> list[tuple[int, int]]:
        """Blocks and threads of the launches since the last call."""
        room = 1 << 16
        sizes = (ctypes.c_uint32 * room)()
        n = self._c.emulation_launches(sizes, room)
        return [(sizes[2 * i], sizes[2 * i + 1]) for i in range(n)]


@contextmanager
def _new_memory_is_nan() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)  # ``torch.utils.deterministic`` fills then
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


@contextmanager
def _new_memory_is_zero() -> Iterator[None]:
    def new_empty(like: torch.Tensor, size: Sequence[int], **options: Any) -> torch.Tensor:
        return unwritten_zeros(*size, dtype=options.get("dtype") or like.dtype)

    override = torch.library.Library("aten", "IMPL")
    override.impl("new_empty", new_empty, "CPU")
    try:
        yield
    finally:
        override._destroy()


def unwritten_zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """That take no room, however many, until somebody writes, and then by the page."""
    n_bytes = max(1, math.prod(shape)) * dtype.itemsize
    memory = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype)[: math.prod(shape)].view(shape)


def set_schedule(library: ctypes.CDLL, schedule: Schedule) -> None:
    """For what ``library`` runs from now on."""
    library.emulation_schedule.argtypes = [ctypes.c_int, ctypes.c_uint64, *[ctypes.c_uint32] * 2]
    order = _ORDERS.index(schedule.order)
    library.emulation_schedule(order, schedule.seed, schedule.resident, schedule.workers)


def same_under_all_schedules(
    ops: EmulatedOps, run: Callable[[], Sequence[torch.Tensor]]
) -> list[torch.Tensor]:
    """What ``run`` returns, which must be the same bits under every schedule."""
    results = []
    for schedule in SCHEDULES:
        with ops.under(schedule):
            results.append([_bits(tensor) for tensor in run()])
    for schedule, result in zip(SCHEDULES, results, strict=True):
        same = all(torch.equal(*each) for each in zip(result, results[0], strict=True))
        assert same, f"{schedule} gives other bits than {SCHEDULES[0]}"
    with ops.under(SCHEDULES[0]):
        return list(run())


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).clone()

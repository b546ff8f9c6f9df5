"""One road on one line: what gives the number, how the road is switched off, and how the two are compared.

The clock is the process's own (``time.process_time``). The sides take turns, and the result is the median of the ratios of
neighbouring turns with the interval that ``ratio`` describes.
"""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from time import process_time
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor

from benchmarks.ratio import median_interval

# A turn is several calls of a fast function, after one that is not timed.
TURN_SECONDS = 1e-2
MOST_CALLS = 1000

Call = Callable[[], Any]
Switch = Callable[[], AbstractContextManager[Any]]


def patched(*changes: tuple[Any, str, Any]) -> Switch:
    """A switch that sets attributes, given as (object, name, value), and puts them back."""

    @contextmanager
    def switch() -> Iterator[None]:
        with ExitStack() as stack:
            for owner, name, value in changes:
                stack.enter_context(mock.patch.object(owner, name, value))
            yield

    return switch


def nothing(*_: Any, **__: Any) -> None:
    """Stands for a function that finds no way."""


def no(*_: Any) -> bool:
    """Stands for a question that is answered with no."""
    return False


def always(call: Call) -> Callable[[], Call]:
    """Returns a maker of this very call."""
    return lambda: call


@dataclass(frozen=True)
class Case:
    """A road on one line.

    ``make`` returns a call that gives the number, a float or a tensor, the same on both sides within ``rtol``. ``off`` and
    ``on`` set the sides up; where no switch does, ``without`` makes the call of the side without the road. ``in_table``:
    whether the workload has a line in the speed table. ``part``: (object, name) of a function that is called where the road
    is met.
    """

    line: str
    make: Callable[[], Call]
    off: Switch = nullcontext
    on: Switch = nullcontext
    without: Callable[[], Call] | None = None
    in_table: bool = True
    note: str = ""
    rtol: float = 1e-4
    part: tuple[Any, str] | None = None

    def is_met(self) -> bool:
        """Tells whether the call goes the road at all."""
        if self.part is None:
            return True
        owner, name = self.part
        with self.on(), mock.patch.object(owner, name, wraps=getattr(owner, name)) as seen:
            self.make()()
        return bool(seen.called)


@dataclass(frozen=True)
class Row:
    """A case's result: seconds a call (medians), and how many times faster the road makes it, with a 95 % interval.

    ``difference``: between the two numbers, as a share of one. All are None where the road is not met; ``note`` says why.
    """

    line: str
    in_table: bool
    note: str
    with_s: float | None = None
    without_s: float | None = None
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    repeats: int = 0
    difference: float | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


# A road's lines; one that does not meet the road comes as a row at once.
Cases = Iterator[Case | Row]


class Side(Protocol):
    """A line with the road or without it, in this process or in another one."""

    def value(self) -> float:
        """The number of a first call."""

    def turn(self, calls: int) -> float:
        """Seconds a call."""


class Here:
    """A side in this process."""

    def __init__(self, make: Callable[[], Call], switch: Switch) -> None:
        self._switch = switch
        with switch():
            self._call = make()

    def value(self) -> float:
        with self._switch():
            return number_of(self._call())

    def turn(self, calls: int) -> float:
        with self._switch():
            if calls > 1:
                self._call()
            start = process_time()
            for _ in range(calls):
                self._call()
            return (process_time() - start) / calls


def number_of(result: float | Tensor) -> float:
    """One number that stands for a result: itself, or a sum over a tensor in which every element has a weight of its own."""
    if not isinstance(result, Tensor):
        return float(result)
    flat = result.detach().double().flatten()
    weights = torch.arange(len(flat), dtype=torch.float64).mul_(0.7).cos_()
    return float(flat @ weights)


def measure(case: Case, repeats: int) -> Row:
    """Compares both sides in this process, where the road is met."""
    if not case.is_met():
        return Row(case.line, case.in_table, "; ".join(filter(None, ("not met", case.note))))
    on, off = Here(case.make, case.on), Here(case.without or case.make, case.off)
    return compare(case, on, off, repeats)


def compare(case: Case, on: Side, off: Side, repeats: int) -> Row:
    """Takes ``repeats`` turns on each side; which one begins alternates.

    Raises:
        AssertionError: the two numbers differ.
    """
    first, second = on.value(), off.value()
    difference = abs(first - second) / max(abs(first), abs(second), 1e-300)
    assert difference <= case.rtol, f"{case.line}: {first} with the road, {second} without it"
    calls = [_calls_in_a_turn(side) for side in (on, off)]
    times: tuple[list[float], list[float]] = ([], [])
    gc.collect()
    gc.disable()
    try:
        for repeat in range(repeats):
            for index in (0, 1) if repeat % 2 else (1, 0):
                times[index].append((on, off)[index].turn(calls[index]))
    finally:
        gc.enable()
    ratios = [without / with_ for with_, without in zip(*times, strict=True)]
    low, high = median_interval(ratios)
    return Row(
        line=case.line,
        in_table=case.in_table,
        note=case.note,
        with_s=statistics.median(times[0]),
        without_s=statistics.median(times[1]),
        ratio=statistics.median(ratios),
        low=low,
        high=high,
        repeats=repeats,
        difference=difference,
    )


def _calls_in_a_turn(side: Side) -> int:
    one = min(side.turn(1) for _ in range(2))
    return max(1, min(MOST_CALLS, round(TURN_SECONDS / max(one, 1e-9))))

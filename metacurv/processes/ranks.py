"""The processes that train copies of one model, which must all find the same learning rate."""

from __future__ import annotations

import atexit
import copy
import time
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metacurv import _validate

ProcessGroup = Any
"""A ``torch.distributed.ProcessGroup``, which a torch without distributed training lacks."""

Returned = TypeVar("Returned")

_DIFFERENCE = 1e-6  # of two rates, relative, that is none of rounding


@cache
def _let_go_before_python_ends() -> None:
    """Delays the end of the process by a moment, in which a thread of gloo lets go of the tensors of its last work.

    That takes Python's lock, and where Python has ended meanwhile the thread aborts the process.
    """
    atexit.register(time.sleep, 0.05)


class Ranks:
    """The ranks that read together.

    Args:
        model: the model; where it is, or has in it, a ``DistributedDataParallel``, the group of that is the usual one.
        process_group: a group of ``torch.distributed``; None for the usual one, which is that of all processes where
            ``torch.distributed`` has been initialised, and else this process alone; False for this process alone.

    Attributes:
        same: numbers by their names, such as rates, that must be the same on all ranks when they read; whoever reads sets them.

    Raises:
        TypeError: ``process_group`` is none of these.
    """

    def __init__(
        self, model: nn.Module | None, process_group: ProcessGroup | Literal[False] | None = None
    ) -> None:
        is_group = torch.distributed.is_available() and isinstance(
            process_group, torch.distributed.ProcessGroup
        )
        if not is_group and process_group is not None and process_group is not False:
            raise TypeError(
                "process_group must be a torch.distributed.ProcessGroup, None for the usual one, or False for this process "
                f"alone, got {_validate.describe(process_group)}"
            )
        modules = () if model is None else model.modules()
        self._model = next((m for m in modules if isinstance(m, DistributedDataParallel)), None)
        self._chosen = process_group
        self.same: Mapping[str, float] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return copy.copy(self)  # a group is no data of this process

    @property
    def _group(self) -> ProcessGroup | None:
        """The group, None for this process alone; it may have been initialised after the optimizer was wrapped."""
        is_usable = torch.distributed.is_available() and torch.distributed.is_initialized()
        if self._chosen is False or not is_usable:
            return None
        of_model = None if self._model is None else self._model.process_group
        return self._chosen or of_model or torch.distributed.group.WORLD

    @property
    def count(self) -> int:
        """The number of ranks."""
        group = self._group
        return 1 if group is None else torch.distributed.get_world_size(group)

    @property
    def here(self) -> int:
        """The number of this rank."""
        group = self._group
        return 0 if group is None else torch.distributed.get_rank(group)

    def mean(self, measure: Callable[[], Tensor], like: Tensor) -> Tensor:
        """Averages what all ranks measure; all of them must call it.

        Args:
            measure: returns numbers of the shape, dtype and device of ``like``.
            like: a tensor.

        Returns:
            The mean; with one rank what ``measure`` returns.

        Raises:
            RuntimeError: measuring failed on another rank.
            ValueError: numbers that must be the same differ.
        """
        count = self.count
        if count == 1:
            return measure()
        if self._model is not None and self._model._join_config.enable:
            raise RuntimeError(
                "process_group must be False within DistributedDataParallel.join(), got ranks that read together: those whose "
                "inputs have ended take no part. Give all ranks the same probe and seed, which then find the same rate alone"
            )
        failure: BaseException | None = None
        try:
            measured = measure()
        except BaseException as error:  # the others wait for this rank's numbers
            failure, measured = error, torch.zeros_like(like)
        here = torch.tensor(list(self.same.values()), dtype=torch.float64)
        failed = torch.tensor([float(failure is not None)], dtype=torch.float64)
        known = torch.cat([here, here.square(), failed]).to(like.device)
        sent = torch.cat([measured.flatten().double(), known])
        torch.distributed.all_reduce(sent, group=self._group)
        _let_go_before_python_ends()
        if failure is not None:
            raise failure
        numbers, known = sent[: like.numel()] / count, sent[like.numel() :].cpu() / count
        if float(known[-1]):
            raise RuntimeError(
                f"measuring failed on {int(sent[-1])} of {count} ranks, whose own errors say why; this rank goes no further, "
                "as all of them must hold one rate"
            )
        _check_same(self.same, *known[:-1].view(2, -1))
        return numbers.view(like.shape).to(like.dtype)

    def together(self, call: Callable[[], Returned], device: torch.device) -> Returned:
        """Calls a function of this rank's own; all ranks must do so, and where it fails on one of them, all raise.

        Args:
            call: the function.
            device: the device that the ranks exchange numbers by.

        Returns:
            What the function returns here.

        Raises:
            RuntimeError: the function raised an error on another rank.
            ValueError: numbers that must be the same differ.
        """
        returned: list[Returned] = []

        def called() -> Tensor:
            returned.append(call())
            return torch.zeros((), device=device)

        self.mean(called, torch.empty((), device=device))
        return returned[0]


def _check_same(same: Mapping[str, float], means: Tensor, squares: Tensor) -> None:
    """Raises ValueError for the first of the numbers that differs, which the means over the ranks and of the squares tell."""
    differ = squares - means.square() > (_DIFFERENCE * means).square()
    for (name, number), mean, differs in zip(same.items(), means, differ, strict=True):
        if bool(differs):
            raise ValueError(
                f"{name} must be the same on all ranks, got {number:.9g} on this one and {float(mean):.9g} as the mean of all: "
                "give all of them the same base optimizer, scheduler, arguments and checkpoint, or process_group=False where "
                "they train models of their own"
            )


def call_each(calls: Iterable[Callable[[], Returned]]) -> list[Returned]:
    """Returns what functions return; where one raises an error, it raises that after it has called the others too.

    A pass through a model whose parts are on several ranks waits for the passes of the others, so all must make as many.
    """
    returned: list[Returned] = []
    failure: Exception | None = None
    for call in calls:
        try:
            returned.append(call())
        except Exception as error:
            failure = failure or error
    if failure is not None:
        raise failure
    return returned

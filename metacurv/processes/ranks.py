"""The processes that train copies of one model, which must all find the same learning rate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metacurv import _validate

ProcessGroup = Any
"""A ``torch.distributed.ProcessGroup``, which a torch without distributed training lacks."""

_DIFFERENCE = 1e-5  # of two rates, relative, that is none of rounding


class Ranks:
    """The ranks that read together.

    Args:
        model: the model; where it is a ``DistributedDataParallel``, its own group is the usual one.
        process_group: a group of ``torch.distributed``; None for the usual one, which is that of all processes where
            ``torch.distributed`` has been initialised, and else this process alone; False for this process alone.

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
        self._model = model if isinstance(model, DistributedDataParallel) else None
        self._chosen = process_group

    def __deepcopy__(self, memo: dict[int, Any]) -> Ranks:
        return self  # a group is no data of this process

    @property
    def _group(self) -> ProcessGroup | None:
        """The group, None for this process alone; it may have been initialised after the optimizer was wrapped."""
        if self._chosen is False or not torch.distributed.is_available():
            return None
        if not torch.distributed.is_initialized():
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

    def mean(
        self, measure: Callable[[], Tensor], like: Tensor, *, same: Sequence[float] = ()
    ) -> Tensor:
        """Averages what all ranks measure; all of them must call it.

        Args:
            measure: returns numbers of the shape, dtype and device of ``like``.
            like: a tensor.
            same: numbers that must be the same on all ranks, such as the rates.

        Returns:
            The mean; with one rank what ``measure`` returns.

        Raises:
            RuntimeError: measuring failed on another rank, or numbers of ``same`` differ.
        """
        group = self._group
        if group is None or torch.distributed.get_world_size(group) == 1:
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
        count = torch.distributed.get_world_size(group)
        known = torch.tensor([*same, *(x * x for x in same)], dtype=torch.float64)
        failed = torch.tensor([float(failure is not None)], dtype=torch.float64)
        sent = torch.cat(
            [measured.flatten().double(), *(x.to(like.device) for x in (known, failed))]
        )
        torch.distributed.all_reduce(sent, group=group)
        if failure is not None:
            raise failure
        numbers, known = sent[: like.numel()] / count, sent[like.numel() : -1].cpu() / count
        if float(sent[-1]):
            raise RuntimeError(
                f"measuring failed on {int(sent[-1])} of {count} ranks, whose own errors say why; this rank goes no further, "
                "as all of them must hold one rate"
            )
        means, squares = known[: len(same)], known[len(same) :]
        if bool((squares - means.square() > (_DIFFERENCE * means).square()).any()):
            raise RuntimeError(
                f"ranks must hold one rate, got {list(same)} here and a mean of {means.tolist()}: give all of them the same "
                "base optimizer, arguments and checkpoint, or process_group=False to ranks that train models of their own"
            )
        return numbers.view(like.shape).to(like.dtype)


def one_copy(model: nn.Module) -> nn.Module:
    """Returns the module that a ``DistributedDataParallel`` wraps, since the wrapper may change the output; else ``model``."""
    return model.module if isinstance(model, DistributedDataParallel) else model

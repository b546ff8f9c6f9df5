"""The processes that train copies of one model, which must all find the same learning rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


class Ranks:
    """The ranks of ``model``, if it is a ``DistributedDataParallel``; else this process alone."""

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model if isinstance(model, DistributedDataParallel) else None

    @property
    def count(self) -> int:
        """The number of ranks."""
        if self._model is None:
            return 1
        return torch.distributed.get_world_size(self._model.process_group)

    @property
    def here(self) -> int:
        """The number of this rank."""
        if self._model is None:
            return 0
        return torch.distributed.get_rank(self._model.process_group)

    def mean(self, numbers: Tensor) -> Tensor:
        """Averages ``numbers`` over all ranks, which must all call it; returns ``numbers`` itself where there is one rank."""
        if self._model is None:
            return numbers
        total = numbers.clone()
        torch.distributed.all_reduce(total, group=self._model.process_group)
        return total.div_(self.count)


def one_copy(model: nn.Module) -> nn.Module:
    """Returns the module that a ``DistributedDataParallel`` wraps, since the wrapper may change the output; else ``model``."""
    return model.module if isinstance(model, DistributedDataParallel) else model

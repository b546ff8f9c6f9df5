"""The signs of K probes and the memory that they are pushed through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from metacurv.estimators.parameters import NumberedParameter


class Probes:
    """Signs of K probes, and room for the tangents made of them.

    All of it is one block, made once: on a small network, memory that each product asks the system for costs as much as the
    product, a page at a time.

    Args:
        parameters: parameters of one dtype, on one device.
        largest: elements of the largest tangent of one probe.
        k: number of probes.

    Attributes:
        signs: the signs by parameter number, [K, *shape].
    """

    def __init__(self, parameters: Sequence[NumberedParameter], *, largest: int, k: int) -> None:
        like = parameters[0].tensor
        sizes = [k * p.tensor.numel() for p in parameters] + 2 * [k * largest]
        block = torch.empty(sum(sizes), dtype=like.dtype, device=like.device)
        *signs, self._here, self._there = torch.split(block, sizes)
        self._numbers = [p.number for p in parameters]
        stacks = [s.view(k, *p.tensor.shape) for s, p in zip(signs, parameters, strict=True)]
        self.signs = dict(zip(self._numbers, stacks, strict=True))

    def draw(self, run: ModuleType, key: int, first: int) -> None:
        """Draws probes ``first`` ... ``first + K - 1``."""
        run.rademacher_stacks_(list(self.signs.values()), key, first % (1 << 32), self._numbers)

    def output(self, *shape: int) -> Tensor:
        """Returns uninitialised room for tangents; the room of the call before stays valid until the next."""
        self._here, self._there = self._there, self._here
        return self._here.narrow(0, 0, math.prod(shape)).view(shape)

    def scratch(self, *shape: int) -> Tensor:
        """Returns uninitialised room that lasts until the next call of ``scratch`` or ``output``."""
        return self._there.narrow(0, 0, math.prod(shape)).view(shape)

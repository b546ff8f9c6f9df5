"""The average that every point of the grid may use too: polynomial-decay averaging (Shamir and Zhang 2013), eta = 8."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


class IterateAverage:
    """Keeps a_t = a_(t-1) + 9 / (t + 9) (theta_t - a_(t-1)), t = 1, 2, ..."""

    def __init__(self, model: nn.Module) -> None:
        self._parameters = [p.detach() for p in model.parameters()]
        self._values = [p.clone() for p in self._parameters]
        self._taken = 0

    @torch.no_grad()
    def take(self) -> None:
        """Counts the present parameters in."""
        self._taken += 1
        torch._foreach_lerp_(self._values, self._parameters, 9 / (self._taken + 9))

    @torch.no_grad()
    def continue_from_it(self) -> None:
        """Puts the average into the parameters for good: the training goes on from there."""
        torch._foreach_copy_(self._parameters, self._values)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Puts the average into the parameters for the length of the block."""
        held = [p.clone() for p in self._parameters]
        torch._foreach_copy_(self._parameters, self._values)
        try:
            yield
        finally:
            torch._foreach_copy_(self._parameters, held)

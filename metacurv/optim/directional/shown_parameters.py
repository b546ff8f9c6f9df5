"""The parameters that a user sees between two steps: the iterate, or the average in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from metacurv.optim.carried_state import OfParameters
from metacurv.optim.directional.copies import copy_all
from metacurv.optim.directional.snapshot import Training
from metacurv.processes.fully_sharded import reshard
from metacurv.processes.local_tensors import locals_of


class ShownParameters:
    """Puts the average into the parameters where a user is to see it, and the iterate back.

    Args:
        training: the live training.
        counts_itself: tells whether the iterate is the result.
    """

    def __init__(self, training: Training, counts_itself: Callable[[], bool]) -> None:
        self._training, self._counts_itself = training, counts_itself
        self._in_block = self._is_evaluating = False
        self._iterate: list[Tensor] | None = None  # while the average is in its place

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Does what ``DirectionalLR.averaged_parameters`` does."""
        if self._training.average is None:
            raise ValueError(
                "averaged_parameters needs the average of MetaCurvatureLR, got average=False"
            )
        before = self._in_block
        self._in_block = not self._counts_itself()
        try:
            self._show()
            yield
        finally:
            self._in_block = before
            self._show()

    def evaluate(self, is_evaluating: bool) -> None:
        """Shows the average from now on, or no longer."""
        self._is_evaluating = is_evaluating
        self._show()

    def _show(self) -> None:
        is_wanted = (self._in_block or self._is_evaluating) and not self._counts_itself()
        if is_wanted == (self._iterate is not None):
            return
        if self._iterate is not None:
            copy_all(self._training.parameters(), self._iterate)
            self._iterate = None
        elif self._training.average is not None:
            self._iterate = self._training.average.swap_in()
        reshard(self._training.model)

    def check_for_step(self) -> None:
        """Raises RuntimeError where a step would be lost."""
        if self._in_block or self._is_evaluating:
            where = "inside averaged_parameters()" if self._in_block else "after eval()"
            raise RuntimeError(
                f"step() must not be called {where}, where it would be lost; "
                + ("leave the block" if self._in_block else "call train() on the optimizer")
            )

    def extend(self, parameters: Sequence[Tensor]) -> None:
        """Takes in the parameters of a new group."""
        if self._iterate is not None:
            self._iterate.extend(p.detach().clone() for p in parameters)

    def state(self) -> OfParameters | None:
        """Returns the iterate where there is an average, which the model may be saved with in its place."""
        if self._training.average is None:
            return None
        return OfParameters(self._training.parameters() if self._iterate is None else self._iterate)

    def load(self, iterate: Sequence[Tensor] | None) -> None:
        """Goes on with the parameters as they are; where these are the average, with which the model was saved, ``iterate``."""
        self._is_evaluating, self._iterate = False, None
        average, now = self._training.average, self._training.parameters()
        if average is None or iterate is None or self._counts_itself():
            return
        found = average.swap_in()
        is_average = all(map(torch.equal, locals_of(found), locals_of(now)))
        copy_all(now, iterate if is_average else found)
        reshard(self._training.model)

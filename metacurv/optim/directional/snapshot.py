"""Copies of everything that a training goes on from, so that it can be left at one place and taken up at another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv.optim.carried_state import OfParameters
from metacurv.optim.directional.base_state import BaseState
from metacurv.optim.directional.checked_state import require, require_entries
from metacurv.optim.directional.copies import copy_all, like
from metacurv.optim.directional.iterate_average import IterateAverage

Copied = TypeVar("Copied", bound="Place")


class Training:
    """The live training: parameters, the base optimizer's state, the model's buffers and the average of the iterates.

    Args:
        base: the base optimizer; its ``state`` is what it keeps between steps.
        model: the model, whose buffers (batch norm's running statistics) belong to the parameters.

    Attributes:
        average: the average of the iterates, or None.
        entries: the names of the entries of the base's groups that its own step changes.
    """

    def __init__(
        self, base: Optimizer, model: nn.Module, average: IterateAverage | None = None
    ) -> None:
        self.base, self.model, self.average = base, model, average
        self.entries: frozenset[str] = frozenset()

    def parameters(self) -> list[Tensor]:
        """Returns all parameters of the base, in the order of its groups."""
        return [p.detach() for group in self.base.param_groups for p in group["params"]]

    def buffers(self) -> dict[str, Tensor]:
        """Returns the buffers of the model by name."""
        return {name: b.detach() for name, b in self.model.named_buffers()}

    def copied_buffers(self) -> dict[str, Tensor]:
        """Returns copies of them."""
        return {name: b.clone() for name, b in self.buffers().items()}


class Place:
    """A copy of a training's parameters and buffers as they are when the copy is made."""

    def __init__(self, training: Training) -> None:
        self.parameters = [p.clone() for p in training.parameters()]
        self.buffers = training.copied_buffers()

    def move_to(self, training: Training, parameters: Sequence[Tensor]) -> None:
        """Becomes a copy of ``parameters``, which may be an average, and of the buffers."""
        copy_all(self.parameters, parameters)
        self.buffers = training.copied_buffers()

    def restore(self, training: Training) -> None:
        """Puts the training back to where the copy was made; the copy stays as it is.

        Buffers that have another shape by now, such as caches that grow, or are new, stay as they are.
        """
        copy_all(training.parameters(), self.parameters)
        both = [
            (b, self.buffers[name])
            for name, b in training.buffers().items()
            if name in self.buffers and self.buffers[name].shape == b.shape
        ]
        copy_all([now for now, _ in both], [copy for _, copy in both])

    def state(self) -> dict[str, Any]:
        """Returns tensors and numbers, for a state dict."""
        return {"parameters": OfParameters(self.parameters), "buffers": self.buffers}

    @classmethod
    def loaded(cls: type[Copied], training: Training, state: Any, name: str) -> Copied:
        """Checks ``state``, called ``name`` in errors, and returns the copy that it describes."""
        new = cls(training)
        new._load(training, state, name)
        return new

    def _load(self, training: Training, state: Any, name: str) -> None:
        is_dict = isinstance(state, dict) and {"parameters", "buffers"} <= state.keys()
        require(is_dict, name, "a dict with parameters and buffers", state)
        self.parameters = like(self.parameters, state["parameters"], f"{name}['parameters']")
        given = state["buffers"]
        are_tensors = isinstance(given, dict) and all(isinstance(b, Tensor) for b in given.values())
        require(are_tensors, f"{name}['buffers']", "a dict of tensors", given)
        self.buffers = {
            key: given[key].to(b, copy=True) for key, b in self.buffers.items() if key in given
        }


class Snapshot(Place):
    """A copy of a training, with the state of the base optimizer and the average of the iterates."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self._base = BaseState(training.base, training.entries)
        average = training.average
        self._average = None if average is None else average.copied()

    def restore(self, training: Training) -> None:
        """Puts the training back to where the copy was made; the copy stays as it is."""
        super().restore(training)
        self._base.restore()
        if training.average is not None and self._average is not None:
            training.average.load(self._average)

    def state(self) -> dict[str, Any]:
        """Returns tensors and numbers, for a state dict."""
        return {**super().state(), "base": self._base.state(), "average": self._average}

    def _load(self, training: Training, state: Any, name: str) -> None:
        require_entries(state, self.state().keys(), name)
        super()._load(training, state, name)
        self._base.load(state["base"], f"{name}['base']")
        if training.average is not None:
            training.average.check(state["average"], f"{name}['average']")
            self._average = state["average"]

"""Copies of everything that a training goes on from, so that it can be left at one place and taken up at another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from metacurv import _validate
from metacurv.optim.carried_state import OfParameters
from metacurv.optim.directional.base_state import BaseState
from metacurv.optim.directional.iterate_average import IterateAverage
from metacurv.processes.local_tensors import locals_of


class Training:
    """The live training: parameters, the base optimizer's state, the model's buffers and the average of the iterates.

    Args:
        base: the base optimizer; its ``state`` is what it keeps between steps.
        model: the model, whose buffers (batch norm's running statistics) belong to the parameters.
        average: the average of the iterates, or None.
        entries: the names of the entries of the base's groups that its own step changes.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        average: IterateAverage | None,
        entries: frozenset[str] = frozenset(),
    ) -> None:
        self.base, self.model, self.average, self.entries = base, model, average, entries

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
    """A copy of a training's parameters and buffers."""

    def __init__(self, training: Training) -> None:
        self.parameters = [p.clone() for p in training.parameters()]
        self.buffers = training.copied_buffers()

    def move_to(self, training: Training, parameters: Sequence[Tensor]) -> None:
        """Becomes a copy of ``parameters``, which may be an average, and of the buffers."""
        copy_all(self.parameters, parameters)
        self.buffers = training.copied_buffers()

    def restore(self, training: Training) -> None:
        """Puts parameters and buffers back; the copy stays as it is."""
        copy_all(training.parameters(), self.parameters)
        copy_buffers(training.buffers(), self.buffers)

    def state(self) -> dict[str, Any]:
        """Returns tensors, for a state dict."""
        return {"parameters": OfParameters(self.parameters), "buffers": self.buffers}

    @classmethod
    def loaded(cls, training: Training, state: Any, name: str) -> Place:
        """Returns the place that ``state``, called ``name`` in errors, describes.

        Raises:
            ValueError: ``state`` has another form, or tensors of other shapes.
        """
        if not isinstance(state, dict) or not {"parameters", "buffers"} <= state.keys():
            raise ValueError(
                f"{name} must be a dict with parameters and buffers, got {_validate.describe(state)}"
            )
        new = cls(training)
        new.parameters = like(new.parameters, state["parameters"], f"{name}['parameters']")
        new.buffers = like_buffers(new.buffers, state["buffers"], f"{name}['buffers']")
        return new


class Snapshot:
    """A copy of a ``Training`` as it is when the copy is made."""

    def __init__(self, training: Training) -> None:
        self._place = Place(training)
        self._base = BaseState(training.base, training.entries)
        average = training.average
        self._average = None if average is None else average.copied()

    def restore(self, training: Training) -> None:
        """Puts the training back to where the copy was made; the copy stays as it is."""
        self._place.restore(training)
        self._base.restore()
        if training.average is not None and self._average is not None:
            training.average.load(self._average)

    def state(self) -> dict[str, Any]:
        """Returns tensors and numbers, for a state dict."""
        return {
            **self._place.state(),
            "base": self._base.state(),
            "average": self._average,
        }

    @classmethod
    def loaded(cls, training: Training, state: Any, name: str) -> Snapshot:
        """Returns a copy like this one with the content of ``state``, which is called ``name`` in errors.

        Raises:
            ValueError: ``state`` has another form, or tensors of other shapes.
        """
        new = cls(training)
        if not isinstance(state, dict) or not new.state().keys() <= state.keys():
            raise ValueError(
                f"{name} must be a dict with {sorted(new.state())}, got {_validate.describe(state)}"
            )
        new._place = Place.loaded(training, state, name)
        new._base.load(state["base"], f"{name}['base']")
        if training.average is not None:
            training.average.check(state["average"], f"{name}['average']")
            new._average = state["average"]
        return new


@torch.no_grad()
def copy_all(into: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copies tensors into tensors of the same shapes."""
    if into:
        torch._foreach_copy_(locals_of(into), locals_of(source))


@torch.no_grad()
def copy_buffers(into: Mapping[str, Tensor], source: Mapping[str, Tensor]) -> None:
    """Copies buffers by name; those that have another shape by now, such as caches that grow, or are new, stay as they are."""
    names = [name for name, b in into.items() if name in source and source[name].shape == b.shape]
    copy_all([into[name] for name in names], [source[name] for name in names])


def like_buffers(own: Mapping[str, Tensor], given: Any, name: str) -> dict[str, Tensor]:
    """Returns copies of those of the tensors ``given`` that have the names of ``own``, in their dtypes and on their devices.

    Raises:
        ValueError: ``given``, which is called ``name`` in the message, is no dict of tensors.
    """
    if not isinstance(given, dict) or not all(isinstance(b, Tensor) for b in given.values()):
        raise ValueError(f"{name} must be a dict of tensors, got {_validate.describe(given)}")
    return {key: given[key].to(b, copy=True) for key, b in own.items() if key in given}


def like(own: Sequence[Tensor], given: Any, name: str) -> list[Tensor]:
    """Returns copies of the tensors ``given``, in the dtypes and on the devices of ``own``.

    Raises:
        ValueError: they are no list of tensors of the same shapes.
    """
    shapes = [tuple(t.shape) for t in own]
    is_list = isinstance(given, list) and all(isinstance(t, Tensor) for t in given)
    if not is_list or [tuple(t.shape) for t in given] != shapes:
        raise ValueError(
            f"{name} must be a list of tensors of shapes {shapes}, got {_validate.describe(given)}"
        )
    return [t.to(o, copy=True) for t, o in zip(given, own, strict=True)]

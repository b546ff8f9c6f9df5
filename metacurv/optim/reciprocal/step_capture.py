"""Finds the forward pass behind a loss: the number of its examples, and where in the loss's graph the model's output is.

While a step is to be measured, a forward hook marks the graph of each pass at the model's output, and the pass behind a loss is
found by going down from the loss. A mark is part of the graph and goes when that goes: however many passes are made, with or
without a loss, nothing is kept alive, and none of them is mistaken for another.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from metacurv import _validate
from metacurv.estimators.activation.plan import NotInActivationSpace
from metacurv.estimators.problem.batches import batch_size
from metacurv.optim.group_parameters import check_model_has_some


@dataclass(frozen=True)
class _Mark:
    """The mark of one forward pass on a node of the graph.

    ``order``: the number of the pass among all. ``samples``: the number of examples in its batch. ``number``: which result of
    the node is the output, None where there are several outputs.
    """

    order: int
    samples: int
    number: int | None


class StepCapture:
    """Listens to the forward passes of one model, and tells which made a loss.

    Args:
        model: the module that the user calls. The hook is there only between ``listen(True)`` and ``listen(False)``.
        stepped: the optimizer's parameters.

    Raises:
        TypeError: ``model`` is no module.
        ValueError: ``model`` has none of the parameters.
    """

    def __init__(self, model: nn.Module, stepped: Iterable[Tensor]) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model must be a torch.nn.Module, got {_validate.describe(model)}")
        check_model_has_some(model, stepped)
        self._model = model
        self._handle: RemovableHandle | None = None
        self._passes = 0
        self._key = object()  # marks of other captures on the same model stay apart

    def listen(self, on: bool) -> None:
        """Registers the hook or takes it away; repeating it changes nothing."""
        if on and self._handle is None:
            hook = _Hook(self)
            self._handle = self._model.register_forward_hook(hook, with_kwargs=True)
            hook.handle = self._handle
        elif not on and self._handle is not None:
            self._handle.remove()
            self._handle = None

    def mark(self, inputs: Any, output: Any) -> None:
        """Marks a forward pass at its end; one without a graph leaves no trace."""
        is_plain = isinstance(output, Tensor)
        outputs = [output] if is_plain else pytree.tree_leaves(output)
        nodes = [
            (tensor.grad_fn, tensor.output_nr)
            for tensor in outputs
            if isinstance(tensor, Tensor) and tensor.grad_fn is not None
        ]
        if not nodes:
            return
        self._passes += 1
        samples = batch_size(inputs)
        for node, number in nodes:
            _marks(node)[self._key] = _Mark(self._passes, samples, number if is_plain else None)

    def find(self, loss: Tensor) -> tuple[GradientEdge | None, int]:
        """Finds the pass whose output a checked ``loss`` was computed from, the last of them if there are several.

        Returns:
            Where the gradient in the output arrives, None where that is not one tensor; and the number of examples.

        Raises:
            NotInActivationSpace: none of the passes made the loss.
        """
        assert loss.grad_fn is not None  # check_loss saw to it
        nodes: list[Node] = [loss.grad_fn]
        seen = set(nodes)
        found: tuple[_Mark, Node] | None = None
        for node in nodes:  # grows as it goes
            mark = _marks(node).get(self._key)
            if mark is not None:
                if found is None or mark.order > found[0].order:
                    found = mark, node
                continue  # further down are earlier passes
            for below, _ in node.next_functions:
                if below is not None and below not in seen:
                    seen.add(below)
                    nodes.append(below)
        if found is None:
            raise NotInActivationSpace(
                "it does not come from a forward pass of model since this step became due (model must be what the loop "
                "calls, and its output a tensor, or a tuple, list or dict of tensors)"
            )
        mark, node = found
        return None if mark.number is None else GradientEdge(node, mark.number), mark.samples


class _Hook:
    """The forward hook, which lives as long as its capture; the optimizer alone holds that.

    Copied with its optimizer it serves the copy. In a model that was copied alone, or has outlived its optimizer, it takes
    itself away.
    """

    def __init__(self, capture: StepCapture | None) -> None:
        self._capture = (lambda: None) if capture is None else weakref.ref(capture)
        self.handle: RemovableHandle | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, (self._capture(),), {"handle": self.handle}

    def __call__(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
    ) -> None:
        if torch.compiler.is_compiling():
            return  # a trace of the model is no pass, and the mark would break its graph
        capture = self._capture()
        if capture is not None:
            inputs = args[0] if args and isinstance(args[0], Tensor) else (args, kwargs)
            capture.mark(inputs, output)
        elif self.handle is not None:
            self.handle.remove()


def _marks(node: Node) -> dict[Any, Any]:
    found: Any = node.metadata  # torch's stub has a method
    return found  # type: ignore[no-any-return]

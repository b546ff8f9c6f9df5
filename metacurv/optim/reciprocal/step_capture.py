"""Finds the forward pass behind a loss: the number of its examples, and where in the loss's graph the model's output is.

While a step is to be measured, a forward hook marks the graph of each pass at the model's output, and the pass behind a loss is
found by going down from the loss. A mark is part of the graph and goes when that goes: however many passes are made, with or
without a loss, nothing is kept alive, and none of them is mistaken for another.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

from metacurv import _validate
from metacurv.estimators.activation.plan import NotInActivationSpace
from metacurv.estimators.problem.batches import batch_size
from metacurv.estimators.problem.errors import (
    NotTwiceDifferentiableError,
    explain_differentiation_errors,
)
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.statistics.moments import TraceReading
from metacurv.optim.group_parameters import check_model_has_some
from metacurv.optim.reciprocal.step_reading import read_step_trace

ActivationEstimator = Literal["activation", "exact", "auto"]
ACTIVATION_ESTIMATORS = get_args(ActivationEstimator)

_WHY = {
    "exact": "exact: it takes few columns of the loss's factor, a backward pass to the layers each",
    "activation": "activation: a backward pass to the layers a sample; exact would take many, or is not right beside smooth "
    "activations",
}


@dataclass(frozen=True)
class ForwardPass:
    """The forward pass that made a loss.

    ``samples``: the number of examples in the batch. ``edge``: where the gradient in the output arrives, None where that is not
    one tensor.
    """

    samples: int
    edge: GradientEdge | None


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

    def read(
        self,
        loss: Tensor,
        parameters: Sequence[NumberedParameter],
        estimator: ActivationEstimator,
        *,
        seed: int,
        first_probe: int,
        n_samples: int,
        backend: str,
    ) -> TraceReading:
        """Calls ``read_step_trace`` for a checked ``loss`` of the model that is listened to.

        Raises:
            NotInActivationSpace: the result would be wrong there, or none of the passes made the loss.
            ValueError: the graph of ``loss`` was freed, or a tensor in it changed since.
            NotTwiceDifferentiableError: the loss has no second derivative in the model's output.
        """
        made_by = self._find(loss)
        if made_by is None:
            raise NotInActivationSpace(
                "it does not come from a forward pass of model since this step became due (model must be what the loop "
                "calls, and its output a tensor, or a tuple, list or dict of tensors)"
            )
        try:
            reading = read_step_trace(
                loss,
                parameters,
                edge=made_by.edge,
                samples=made_by.samples,
                estimator=estimator,
                seed=seed,
                first_probe=first_probe,
                n_samples=n_samples,
                backend=backend,
            )
        except NotTwiceDifferentiableError:
            raise
        except RuntimeError as error:  # most likely the graph has been freed
            with explain_differentiation_errors("a backward pass from loss to the layers"):
                raise error
        why = _WHY[reading.method] if estimator == "auto" else "asked for by name"
        return replace(reading, why=why)

    def _find(self, loss: Tensor) -> ForwardPass | None:
        """Returns the pass whose output ``loss`` was computed from, the last of them if there are several."""
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
            return None
        mark, node = found
        edge = None if mark.number is None else GradientEdge(node, mark.number)
        return ForwardPass(mark.samples, edge)


class _Hook:
    """The forward hook, which lives as long as its capture; the optimizer alone holds that.

    Copied with its optimizer it serves the copy. In a model that was copied alone, or has outlived its optimizer, it takes
    itself away.
    """

    def __init__(self, capture: StepCapture | None) -> None:
        self._capture: Callable[[], StepCapture | None] = (
            weakref.ref(capture) if capture is not None else _nobody
        )
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
            capture.mark(
                args[0] if args and isinstance(args[0], Tensor) else (args, kwargs), output
            )
        elif self.handle is not None:
            self.handle.remove()


def _marks(node: Node) -> dict[Any, Any]:
    found: Any = node.metadata  # torch's stub has a method
    return found  # type: ignore[no-any-return]


def _nobody() -> None:
    return None

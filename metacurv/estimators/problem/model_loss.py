"""A model's loss on one batch, evaluated as often as needed without leaving a trace in the user's state."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from metacurv import _validate
from metacurv.estimators.problem.elsewhere import elsewhere
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.problem.user_state import (
    StateKept,
    gradients_on,
    recording,
    without_module_hooks,
)

LossFunction = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class Forward:
    """One forward pass: the model's output and the loss, with their graph.

    ``output`` is what ``loss_fn`` got, and ``tensor`` the one in it that the loss is of, where that is known; ``edge`` is where
    the gradient in it arrives, taken before the loss sees it.
    """

    output: Any
    tensor: Tensor | None
    loss: Tensor
    edge: GradientEdge | None


@dataclass(frozen=True)
class ModelLoss:
    """The loss loss_fn(model(inputs), targets) as a function of the model's parameters.

    ``inputs``: a tuple is passed as positional arguments, a mapping as keyword arguments, anything else as the one argument.
    ``pick``: picks from the model's output what ``loss_fn`` gets; None for all of it.
    ``parameters``: those of the model that require a gradient, numbered by their position among all.
    ``eager``: True where forward passes go around torch.compile; ``math_attention``: around fused attention. Both lack second
    derivatives, and a compiled model hides its layers.
    """

    model: nn.Module
    loss_fn: LossFunction
    inputs: Any
    targets: Any
    parameters: list[NumberedParameter]
    pick: Callable[[Any], Any] | None = None
    eager: bool = False
    math_attention: bool = False

    @property
    def device(self) -> torch.device:
        """The parameters' device."""
        return self.parameters[0].tensor.device

    def forward(self) -> Forward:
        """Runs one pass with gradients on. All passes see the same random numbers, so that dropout keeps its mask."""
        with (
            gradients_on(),
            self.state_kept(),
            self.ways_around(),
            without_module_hooks(self._modules),
        ):
            output = self.picked(call_model(self.model, _out_of_inference(self.inputs)))
            tensor = known_tensor(output)
            node = None if tensor is None else tensor.grad_fn
            edge = None if tensor is None or node is None else GradientEdge(node, tensor.output_nr)
            return Forward(output, tensor, self._loss(output), edge)

    def picked(self, output: Any) -> Any:
        """Returns what ``loss_fn`` gets of a model's output."""
        return output if self.pick is None else self.pick(output)

    def forward_with(self, values: Mapping[str, Tensor]) -> Any:
        """Returns the model's output with ``values`` in place of the parameters of these names, for the same random numbers.

        The caller chooses whether gradients are recorded; ``values`` may carry tangents of forward-mode differentiation.
        """
        tensors = {id(p.tensor): values[p.name] for p in self.parameters if p.name in values}
        with recording(), self.state_kept(), _replaced(self.model, tensors):
            return self.picked(call_model(self.model, _out_of_inference(self.inputs)))

    def loss_of(self, output: Any) -> Tensor:
        """Returns the loss of an output, without the model, with gradients on."""
        with gradients_on(), self.state_kept():
            return self._loss(output)

    def _loss(self, output: Any) -> Tensor:
        try:
            return self.loss_fn(output, _out_of_inference(self.targets))
        except (AttributeError, TypeError) as error:
            if self.targets is not None:
                raise
            raise ValueError(
                f"targets must be given where inputs is one batch, got None, which loss_fn cannot take: {error}"
            ) from error

    def again(self) -> Tensor:
        """Returns the loss of one pass with all parameters elsewhere, with its graph."""
        moved = elsewhere([p.tensor for p in self.parameters])
        values = {p.name: x for p, x in zip(self.parameters, moved, strict=True)}
        with gradients_on(), self.ways_around(), without_module_hooks(self._modules):
            return self.loss_of(self.forward_with(values))

    def ways_around(self) -> AbstractContextManager[object]:
        """Goes around torch.compile and fused attention for the length of the block, where this is asked for."""
        if not self.eager and not self.math_attention:
            return nullcontext()
        stack = ExitStack()
        if self.eager:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if self.math_attention:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return stack

    def state_kept(self) -> StateKept:
        """Puts random state and buffers back at the end: a backward pass changes them too where it repeats the forward pass."""
        return StateKept(self._modules, self.device)

    @cached_property
    def _modules(self) -> list[nn.Module]:
        return list(self.model.modules())


def check_loss(loss: Tensor, *, finite: bool = True) -> None:
    """Raises unless ``loss`` is a real scalar with a graph (and a finite value, which costs a host sync on CUDA)."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must be a Tensor, got {_validate.describe(loss)}")
    if loss.numel() != 1:
        raise ValueError(f"loss must be a scalar, got shape {tuple(loss.shape)}")
    _validate.real_tensor("loss", loss)
    if not loss.requires_grad or loss.grad_fn is None:
        got = "a leaf" if loss.requires_grad else "a detached tensor"
        raise ValueError(
            f"loss must carry a graph (be computed from the parameters with gradients enabled), got {got}"
        )
    if loss.is_meta:
        raise ValueError("loss must hold a value, got a tensor on the meta device")
    if finite and not math.isfinite(value := loss.item()):
        raise ValueError(f"loss must be finite, got {value}")


def known_tensor(output: Any) -> Tensor | None:
    """Returns the tensor that a loss is of: the output itself, or the logits of an output object as transformers has them."""
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    return logits if isinstance(logits, Tensor) else None


def call_model(model: Callable[..., Any], inputs: Any) -> Any:
    """Calls the model with a tuple (no named one) as positional, a mapping as keyword arguments, else with one argument."""
    if type(inputs) is tuple:
        return model(*inputs)
    if isinstance(inputs, Mapping):
        try:
            return model(**inputs)
        except TypeError as error:
            if hasattr(error, "add_note"):  # from Python 3.11 on
                error.add_note(
                    "metacurv: inputs that are a mapping are passed as keyword arguments; a model that takes the mapping "
                    "itself needs a tuple of one, ({...},)"
                )
            raise
    return model(inputs)


def _out_of_inference(value: Any) -> Any:
    """Copies tensors made under inference_mode, which autograd refuses to save."""

    def usable(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf

    return usable(value) if isinstance(value, Tensor) else pytree.tree_map(usable, value)


@contextmanager
def _replaced(model: nn.Module, tensors: Mapping[int, Tensor]) -> Iterator[None]:
    """Puts tensors in the places of parameters, given by id, and the parameters back at the end.

    torch.func.functional_call will not do: in torch 2.13, where a module is used twice, it leaves the parameters replaced.
    """
    held = [
        (module, name, parameter)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if id(parameter) in tensors
    ]
    try:
        for module, name, parameter in held:
            module._parameters[name] = tensors[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for module, name, parameter in held:
            module._parameters[name] = parameter

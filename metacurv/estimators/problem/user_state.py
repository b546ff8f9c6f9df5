"""Keeps the user's state that passes change, and puts it back; leaves the modes and hooks that are not for a measurement."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext

import torch
from torch import nn

from metacurv.estimators.problem.parameters import NumberedParameter


class StateKept:
    """Puts the random state and the modules' buffers, such as running statistics, back at the end.

    It is a class and not a generator since it is entered at every step of a training loop.
    """

    def __init__(self, modules: Sequence[nn.Module], device: torch.device) -> None:
        self._modules = modules
        self._device = device

    def __enter__(self) -> None:
        self._cpu = torch.default_generator.get_state()
        is_cuda = self._device.type == "cuda"
        self._cuda = torch.cuda.get_rng_state(self._device) if is_cuda else None
        self._buffers = [
            (module, name, buffer, buffer._version, buffer.detach().clone())
            for module in self._modules
            if module._buffers
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]

    def __exit__(self, *_: object) -> None:
        torch.default_generator.set_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        for module, name, buffer, version, value in self._buffers:
            # Batch norm's kernels change running statistics without a new version number.
            if module.training or buffer._version != version:
                # The version number stays, since the graph of the pass may have saved the buffer.
                keep_version = torch.autograd.grad_mode._unsafe_preserve_version_counter
                with torch.no_grad(), keep_version(buffer):
                    buffer.copy_(value)
            module._buffers[name] = buffer


class RandomState:
    """Torch's global random state as it was when this was made."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._states = self._now()

    def _now(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        is_cuda = self._device.type == "cuda"
        on_device = torch.cuda.get_rng_state(self._device) if is_cuda else None
        return torch.default_generator.get_state(), on_device

    def _set(self, states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        torch.default_generator.set_state(states[0])
        if states[1] is not None:
            torch.cuda.set_rng_state(states[1], self._device)

    @contextmanager
    def seen(self) -> Iterator[None]:
        """Goes back to that state for the length of the block."""
        before = self._now()
        self._set(self._states)
        try:
            yield
        finally:
            self._set(before)


@contextmanager
def without_hooks(parameters: Sequence[NumberedParameter]) -> Iterator[None]:
    """Switches the gradient hooks of leaf parameters off: a reading is not the user's backward pass."""
    hooked = [(p.tensor, p.tensor._backward_hooks) for p in parameters if p.tensor._backward_hooks]
    try:
        for tensor, _ in hooked:
            tensor._backward_hooks = None
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks


@contextmanager
def without_module_hooks(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Switches full backward hooks of modules off: a measurement is not the user's backward pass."""
    names = ("_backward_hooks", "_backward_pre_hooks")
    held = [(m, name, getattr(m, name)) for m in modules for name in names if getattr(m, name)]
    try:
        for module, name, _ in held:
            object.__setattr__(module, name, OrderedDict())
        yield
    finally:
        for module, name, hooks in held:
            object.__setattr__(module, name, hooks)


def recording() -> AbstractContextManager[object]:
    """Leaves inference mode, in which autograd records nothing; does nothing outside it, since even that change costs time."""
    return torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext()


def plain_arithmetic(device: torch.device) -> AbstractContextManager[object]:
    """Leaves inference mode and autocast, for code that takes tensors as they are; does nothing where both are off."""
    if not torch.is_autocast_enabled(device.type):
        return recording()
    stack = ExitStack()
    stack.enter_context(recording())
    stack.enter_context(torch.autocast(device.type, enabled=False))
    return stack


def gradients_on() -> AbstractContextManager[object]:
    """Leaves inference mode and enables gradients; does nothing where they are on."""
    if torch.is_grad_enabled() and not torch.is_inference_mode_enabled():
        return nullcontext()
    stack = ExitStack()
    stack.enter_context(recording())
    stack.enter_context(torch.enable_grad())
    return stack

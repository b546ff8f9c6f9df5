"""Keeps the user's state that a forward pass changes, and puts it back."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext

import torch
from torch import Tensor, nn


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
            _Buffer(module, name, buffer)
            for module in self._modules
            if module._buffers
            for name, buffer in module._buffers.items()
            if buffer is not None and not buffer.is_inference()
        ]

    def __exit__(self, *_: object) -> None:
        torch.default_generator.set_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
        for buffer in self._buffers:
            buffer.put_back()


class _Buffer:
    def __init__(self, module: nn.Module, name: str, buffer: Tensor) -> None:
        self._place = (module, name)
        self._buffer = buffer
        self._version = buffer._version
        self._value = buffer.detach().clone()

    def put_back(self) -> None:
        module, name = self._place
        # Batch norm's kernels change running statistics without a new version number.
        if module.training or self._buffer._version != self._version:
            # The version number stays, since the graph of the pass may have saved the buffer.
            keep_version = torch.autograd.grad_mode._unsafe_preserve_version_counter
            with torch.no_grad(), keep_version(self._buffer):
                self._buffer.copy_(self._value)
        module._buffers[name] = self._buffer


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

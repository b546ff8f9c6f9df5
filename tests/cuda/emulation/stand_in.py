"""CUDA tensors that live on the host, and an alarm for everything that would make the host wait for a GPU.

A ``StandIn`` says that it is on cuda:0, and holds a CPU tensor with the values. Every op on it, the package's included, runs
on the CPU tensors, so a training step runs whole, with its numbers; ops that mix it with tensors on the CPU are errors, as on a
GPU. Within ``alarm()`` these raise ``WouldWait``: a value that comes to the host (``item``, ``tolist``, ``nonzero``, a boolean
index, ``equal``, a count that decides a shape), and a copy between host and device in either direction, but for one from pinned
memory that is asked not to block.

Not modelled: kernels' own launches, and synchronisation inside libraries (cuSOLVER) that no op shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import (
    TorchDispatchMode,
    _disable_current_modes,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
_DEVICE = torch.device("cuda", 0)
_TO_HOST = {
    aten._local_scalar_dense.default,
    aten._unique2.default,
    aten.allclose.default,
    aten.bincount.default,
    aten.equal.default,
    aten.is_nonzero.default,
    aten.item.default,
    aten.masked_select.default,
    aten.nonzero.default,
    aten.repeat_interleave.Tensor,
    aten.unique_consecutive.default,
    aten.unique_dim.default,
}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
_alarmed = False


class WouldWait(Exception):
    """What was called would make the host wait for the device."""


class StandIn(torch.Tensor):
    """A tensor on "cuda:0". ``on_host``: the CPU tensor that holds its values."""

    on_host: torch.Tensor

    @staticmethod
    def __new__(cls, on_host: torch.Tensor) -> StandIn:
        made: StandIn = torch.Tensor._make_wrapper_subclass(
            cls,
            on_host.shape,
            strides=on_host.stride(),
            storage_offset=on_host.storage_offset(),
            dtype=on_host.dtype,
            device=_DEVICE,
        )
        made.on_host = on_host
        return made

    def __repr__(self, **_: Any) -> str:
        _sound("repr")
        return f"StandIn({self.on_host!r})"

    def tolist(self) -> Any:
        """No op: torch reads the memory."""
        _sound("tolist")
        return self.on_host.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class StandInMode(TorchDispatchMode):
    """What is made on "cuda" within it is a ``StandIn``."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def stand_in_device() -> Iterator[None]:
    """For a process that loaded stand_in.cpp, compiled, before it imported torch. What it changes in torch stays so."""
    torch.cuda._lazy_init = lambda: None  # nothing to initialise
    # The generator of a GPU is on the host; there is none.
    torch.cuda.get_rng_state = lambda *_: torch.zeros(16, dtype=torch.uint8)
    torch.cuda.set_rng_state = lambda *_: None
    torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") comes to the mode
    with StandInMode():
        yield


@contextmanager
def alarm() -> Iterator[None]:
    """Within it nothing may wait."""
    global _alarmed
    _alarmed = True
    try:
        yield
    finally:
        _alarmed = False


def _sound(what: object) -> None:
    if _alarmed:
        raise WouldWait(str(what))


def _run(func: Callable[..., Any], args: Any, kwargs: dict[str, Any]) -> Any:
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    on_device = any(isinstance(tensor, StandIn) for tensor in tensors)
    target = kwargs.get("device")
    goes_to = None if target is None else torch.device(target).type
    copies = func in (aten.copy_.default, aten._foreach_copy_.default)
    targets, sources = tree_leaves(args[:1]), tree_leaves(args[1:2])
    if on_device and (func in _TO_HOST or goes_to == "cpu"):
        _sound(func)
    goes_on = bool(kwargs.get("non_blocking", copies and len(args) > 2 and args[2]))
    if copies:
        pairs = zip(targets, sources, strict=True)
        crossing = [y for x, y in pairs if isinstance(x, StandIn) != isinstance(y, StandIn)]
    else:
        crossing = tensors if goes_to == "cuda" and not on_device else []
    if crossing and not (goes_on and all(source.is_pinned() for source in crossing)):
        _sound(f"{func} between host and device")
    if func in _INDEXING and on_device:
        masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)]
        if masks:
            _sound(f"{func} by a mask")
    if on_device and not copies and goes_to != "cpu":
        _refuse_strangers(func, tensors, args, kwargs)

    if goes_to == "cuda":
        kwargs = {**kwargs, "device": torch.device("cpu")}
    with _disable_current_modes():
        results = func(*tree_map(_held, args), **tree_map(_held, kwargs))
    stays = isinstance(targets[0], StandIn) if copies else on_device and goes_to != "cpu"
    if not stays and goes_to != "cuda":
        return results
    wrapped = tree_map(lambda x: StandIn(x) if isinstance(x, torch.Tensor) else x, results)
    return return_and_correct_aliasing(func, args, kwargs, wrapped)


def _held(leaf: Any) -> Any:
    return leaf.on_host if isinstance(leaf, StandIn) else leaf


def _refuse_strangers(
    func: Any, tensors: list[torch.Tensor], args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """Numbers without a dimension may come from the host, as they do on a GPU; none may be written to there."""
    arguments = func._schema.arguments
    given = {argument.name: x for argument, x in zip(arguments, args, strict=False)} | kwargs
    outputs = [given.get(argument.name) for argument in arguments if argument.is_write]
    written = {id(x) for x in tree_leaves(outputs)}
    for tensor in tensors:
        if not isinstance(tensor, StandIn) and (tensor.dim() > 0 or id(tensor) in written):
            raise RuntimeError(f"{func} of tensors on cuda:0 and {tensor.device}")

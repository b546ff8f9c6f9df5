"""Models of ``fully_shard`` (FSDP2): between two steps a process holds a part of each parameter, and in a pass all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


def sharded_modules(model: nn.Module) -> list[Any]:
    """Returns the modules of a model that ``fully_shard`` was called on; where nobody has imported it, there are none."""
    fsdp = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(fsdp, "FSDPModule", None)
    return [] if kind is None else [m for m in model.modules() if isinstance(m, kind)]


def reshard(model: nn.Module) -> None:
    """Frees what the modules have gathered, so that the next pass gathers the parameters as they are then.

    A module keeps what it has gathered until the next backward pass, and would not see a parameter move.
    """
    for module in sharded_modules(model):
        module.reshard()


@contextmanager
def whole_parameters(model: nn.Module) -> Iterator[None]:
    """Gathers all parameters for the length of the block; the model's own parameters are whole tensors there.

    Backward passes in the block leave them whole, and reduce no gradients. All ranks must enter it.
    """
    modules = sharded_modules(model)
    groups = [g for m in modules for g in m._get_fsdp_state()._fsdp_param_groups]
    names = ("reduce_grads", "all_reduce_grads", "reshard_after_backward", "post_forward_mesh_info")
    before = [(group, {name: getattr(group, name) for name in names}) for group in groups]
    held = [module for module in modules if not _is_sharded(module)]
    try:
        for group in groups:
            group.reduce_grads = group.all_reduce_grads = group.reshard_after_backward = False
            group.post_forward_mesh_info = None  # a pass leaves the parameters gathered
        for module in modules:
            module.unshard()
        yield
    finally:
        for group, values in before:
            for name, value in values.items():
                setattr(group, name, value)
        for module in modules:
            if module not in held:
                module.reshard()


def _is_sharded(module: Any) -> bool:
    return all(group.is_sharded for group in module._get_fsdp_state()._fsdp_param_groups)

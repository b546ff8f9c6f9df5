"""Models of ``fully_shard`` (FSDP2): between two steps a process holds a part of each parameter, and in a pass all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from metacurv.processes.local_tensors import is_spread


def sharded_modules(model: nn.Module) -> list[Any]:
    """Returns the modules of a model that ``fully_shard`` was called on; where nobody has imported it, there are none.

    Raises:
        TypeError: a module is a ``FullyShardedDataParallel`` (FSDP1), whose parameters are not where they seem to be.
    """
    fsdp = sys.modules.get("torch.distributed.fsdp")
    if fsdp is None:
        return []
    modules = list(model.modules())
    if any(isinstance(module, fsdp.FullyShardedDataParallel) for module in modules):
        raise TypeError(
            "model must be sharded by torch.distributed.fsdp.fully_shard (FSDP2), got a FullyShardedDataParallel (FSDP1)"
        )
    return [module for module in modules if isinstance(module, fsdp.FSDPModule)]


def reshard(model: nn.Module) -> None:
    """Frees what the modules have gathered, so that the next pass gathers the parameters as they are then.

    A module keeps what it has gathered until the next backward pass, and would not see a parameter move.
    """
    for module in sharded_modules(model):
        module.reshard()


@contextmanager
def whole_parameters(
    model: nn.Module | None, parts: Mapping[str, Tensor]
) -> Iterator[list[Tensor]]:
    """Gathers all parameters of a model for the length of the block.

    Backward passes in the block leave them whole, and reduce no gradients. All ranks must enter it.

    Args:
        model: the model; nothing happens where no module of it is sharded.
        parts: parameters by name; of those that are sharded, this process holds parts.

    Yields:
        The whole tensors of ``parts``, which the graph of a pass through the model ends in.

    Raises:
        ValueError: ``parts`` has a sharded parameter, and the model is not given or lacks it.
    """
    modules = [] if model is None else sharded_modules(model)
    groups = [group for module in modules for group in _groups(module)]
    of_model = {id(p.sharded_param): p for group in groups for p in group.fsdp_params}
    lacks = [name for name, part in parts.items() if is_spread(part) and id(part) not in of_model]
    if lacks:
        got = "None" if model is None else f"a {type(model).__name__} without it"
        raise ValueError(
            f"model must be the one whose parameter {lacks[0]!r} fully_shard has sharded, MetaCurvatureLR(..., model=model), "
            f"got {got}"
        )
    if not modules:
        yield list(parts.values())
        return
    flags = ("reduce_grads", "all_reduce_grads", "reshard_after_backward", "post_forward_mesh_info")
    before = [(group, {flag: getattr(group, flag) for flag in flags}) for group in groups]
    sharded = [module for module in modules if all(group.is_sharded for group in _groups(module))]
    try:
        for group in groups:
            group.reduce_grads = group.all_reduce_grads = group.reshard_after_backward = False
            group.post_forward_mesh_info = None  # a pass leaves the parameters gathered
        for module in modules:
            module.unshard()
        yield [
            of_model[id(part)].unsharded_param if id(part) in of_model else part
            for part in parts.values()
        ]
    finally:
        for group, values in before:
            for flag, value in values.items():
                setattr(group, flag, value)
        for module in sharded:
            module.reshard()


@contextmanager
def as_one_process(model: nn.Module) -> Iterator[None]:
    """Gathers all parameters for the length of the block, in which a pass through the model waits for no other process.

    All ranks must enter it where the model is sharded; in it they may take different numbers of passes.
    """
    with whole_parameters(model, {}), ExitStack() as stack:
        for copies in model.modules():
            if isinstance(copies, DistributedDataParallel):
                stack.enter_context(_without_broadcasts(copies))
        for module in sharded_modules(model):
            policy = module._get_fsdp_state()._mp_policy
            if policy.param_dtype is None:  # else its hooks cast the inputs
                stack.enter_context(_without_its_hooks(module))
        yield


@contextmanager
def _without_broadcasts(copies: DistributedDataParallel) -> Iterator[None]:
    """Lets a call of the wrapper call the module that it wraps: the wrapper's own pass sends buffers to all processes."""
    before = copies.__dict__.get("forward")
    copies.__dict__["forward"] = copies.module.__call__
    try:
        yield
    finally:
        del copies.__dict__["forward"]
        if before is not None:
            copies.__dict__["forward"] = before


@contextmanager
def _without_its_hooks(module: Any) -> Iterator[None]:
    """Takes the hooks of ``fully_shard`` off a module: they split the graph, and nothing is to be gathered."""
    state = module._get_fsdp_state()
    places = (module._forward_pre_hooks, module._forward_hooks)
    before = [dict(hooks) for hooks in places]
    for hooks in places:
        for key, hook in list(hooks.items()):
            if _is_method_of(state, hook):
                del hooks[key]
    try:
        yield
    finally:
        for hooks, were in zip(places, before, strict=True):
            hooks.clear()
            hooks.update(were)


def _is_method_of(owner: object, hook: Any) -> bool:
    """Tells whether a hook is a method of ``owner``, or wraps one, as those of ``fully_shard([a, b])`` do."""
    while hook is not None and getattr(hook, "__self__", None) is not owner:
        hook = getattr(hook, "__wrapped__", None)
    return hook is not None


def _groups(module: Any) -> list[Any]:
    """Returns the groups of parameters of a sharded module; older torch has one at most."""
    state = module._get_fsdp_state()
    if hasattr(state, "_fsdp_param_groups"):
        return list(state._fsdp_param_groups)
    return [] if state._fsdp_param_group is None else [state._fsdp_param_group]

"""Models of ``fully_shard`` (FSDP2): between two steps a process holds a part of each parameter, and in a pass all of it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

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
def whole_parameters(model: nn.Module | None, parts: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Gathers all parameters of a model for the length of the block.

    Backward passes in the block leave them whole, and reduce no gradients. All ranks must enter it.

    Args:
        model: the model; nothing happens where no module of it is sharded.
        parts: some of its parameters, of which this process holds parts.

    Yields:
        The whole tensors of ``parts``, which the graph of a pass through the model ends in.

    Raises:
        ValueError: ``parts`` are sharded, and the model is not given.
    """
    modules = [] if model is None else sharded_modules(model)
    if not modules or model is None:
        if any(map(is_spread, parts)):
            raise ValueError(
                "model must be given where fully_shard has sharded the parameters, got None: "
                "MetaCurvatureLR(..., model=model)"
            )
        yield list(parts)
        return
    names = {id(p): name for name, p in model.named_parameters()}
    groups = [g for m in modules for g in m._get_fsdp_state()._fsdp_param_groups]
    flags = ("reduce_grads", "all_reduce_grads", "reshard_after_backward", "post_forward_mesh_info")
    before = [(group, {flag: getattr(group, flag) for flag in flags}) for group in groups]
    held = [module for module in modules if not _is_sharded(module)]
    try:
        for group in groups:
            group.reduce_grads = group.all_reduce_grads = group.reshard_after_backward = False
            group.post_forward_mesh_info = None  # a pass leaves the parameters gathered
        for module in modules:
            module.unshard()
        whole = dict(model.named_parameters())
        yield [whole[names[id(part)]] for part in parts]
    finally:
        for group, values in before:
            for flag, value in values.items():
                setattr(group, flag, value)
        for module in modules:
            if module not in held:
                module.reshard()


@contextmanager
def as_one_process(model: nn.Module) -> Iterator[None]:
    """Gathers all parameters for the length of the block, in which the model is as it would be without shards.

    All ranks must enter it; in it they may take different numbers of passes.
    """
    with whole_parameters(model, []), ExitStack() as stack:
        for module in sharded_modules(model):
            if (
                module._get_fsdp_state()._mp_policy.param_dtype is None
            ):  # else its hooks cast the inputs
                stack.enter_context(_without_its_hooks(module))
        yield


@contextmanager
def _without_its_hooks(module: Any) -> Iterator[None]:
    """Takes the hooks of ``fully_shard`` off a module: they split the graph, and nothing is to be gathered."""
    state = module._get_fsdp_state()
    places = (module._forward_pre_hooks, module._forward_hooks)
    before = [dict(hooks) for hooks in places]
    for hooks in places:
        for key, hook in list(hooks.items()):
            if getattr(hook, "__self__", None) is state:
                del hooks[key]
    try:
        yield
    finally:
        for hooks, were in zip(places, before, strict=True):
            hooks.clear()
            hooks.update(were)


def _is_sharded(module: Any) -> bool:
    return all(group.is_sharded for group in module._get_fsdp_state()._fsdp_param_groups)

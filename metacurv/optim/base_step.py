"""One step of a base optimizer at given learning rates; afterwards the groups have the user's rates again."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.optim import Optimizer

from metacurv.optim.group_parameters import all_parameters
from metacurv.processes.local_tensors import is_spread, local, sum_over_shards

Rate = float | Tensor


def step_base_at(base: Optimizer, rates: Sequence[Rate]) -> None:
    """Steps ``base`` with one rate for each parameter group, and then puts the groups' own rates back.

    A scheduler therefore keeps ``group["lr"]`` to itself. A tensor lr keeps its identity. Groups that share one tensor must get
    one rate.
    """
    numbers: list[tuple[dict[str, object], object]] = []
    tensors: dict[int, tuple[Tensor, Tensor]] = {}
    try:
        for group, rate in zip(base.param_groups, rates, strict=True):
            lr = group["lr"]
            if not isinstance(lr, Tensor):
                numbers.append((group, lr))
                group["lr"] = rate
            elif id(lr) not in tensors:
                memory = lr.detach()  # a leaf that requires a gradient may not change in place
                tensors[id(lr)] = (memory, memory.clone())
                if isinstance(rate, Tensor):
                    memory.copy_(rate)
                else:
                    memory.fill_(rate)
        base.step()
    finally:
        for group, lr in numbers:
            group["lr"] = lr
        for memory, before in tensors.values():
            memory.copy_(before)


def is_dry(base: Optimizer) -> bool:
    """Tells whether a step could only set the base's state up: all learning rates and all gradients are zeros.

    ``torch.distributed.checkpoint`` takes such a step to see what there is to load.
    """
    for lr in (group["lr"] for group in base.param_groups):
        # Looking at a rate on a GPU would wait for the GPU, and none is zero there.
        if (isinstance(lr, Tensor) and lr.is_cuda) or lr != 0:
            return False
    gradients = [p.grad for p in all_parameters(base) if p.grad is not None]
    return bool(gradients) and not has_entries(gradients)


def has_entries(gradients: Sequence[Tensor]) -> bool:
    """Tells whether any number of these gradients is not zero, on any process that holds a part of them."""

    def count(gradient: Tensor) -> Tensor:
        return (gradient._values() if gradient.is_sparse else local(gradient)).count_nonzero()

    if any(map(is_spread, gradients)):
        return bool(
            sum_over_shards([count(gradient).double() for gradient in gradients], gradients)
        )
    return any(bool(count(gradient)) for gradient in gradients)


def stays_on_device(base: Optimizer) -> bool:
    """Tells whether the base steps without ever waiting for a GPU; then nothing else in the step may wait either."""
    return any(
        group.get("capturable") and group["params"] and group["params"][0].is_cuda
        for group in base.param_groups
    )

"""Copies between lists of tensors, such as all parameters of a training, each process its own parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv.optim.directional.checked_state import require
from metacurv.processes.local_tensors import locals_of


@torch.no_grad()
def copy_all(into: Sequence[Tensor], source: Sequence[Tensor]) -> None:
    """Copies tensors into tensors of the same shapes."""
    if into:
        torch._foreach_copy_(locals_of(into), locals_of(source))


def like(own: Sequence[Tensor], given: Any, name: str) -> list[Tensor]:
    """Checks the shapes of the tensors ``given``, and returns copies in the dtypes and on the devices of ``own``."""
    shapes = [tuple(t.shape) for t in own]
    is_list = isinstance(given, list) and all(isinstance(t, Tensor) for t in given)
    fits = is_list and [tuple(t.shape) for t in given] == shapes
    require(fits, name, f"a list of tensors of shapes {shapes}", given)
    return [t.to(o, copy=True) for t, o in zip(given, own, strict=True)]

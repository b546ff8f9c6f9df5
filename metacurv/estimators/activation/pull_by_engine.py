"""Pulls cotangents from the loss's boundary down to the layers by backward passes of autograd, one at a time: any graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv.estimators.graph.torch_private import run_backward
from metacurv.estimators.graph.walk import Walk

# The tensors that are added to the cotangents of some (node, output), [R, *its shape].
Bends = Mapping[tuple[int, int], Tensor]
Cotangents = Sequence[Tensor | None]


def pull_by_engine(
    walk: Walk,
    boundary: tuple[int, int],
    inputs: Sequence[Any],
    cotangent: Tensor,
    bends: Bends,
) -> Cotangents:
    """Pulls cotangent [R, *boundary] down, each row by a backward pass of its own: for each of ``inputs`` [R, *its shape]."""
    roots = [walk.edge(*place) for place in (boundary, *bends)]
    rows = [
        run_backward(roots, inputs, [cotangent[r], *(b[r] for b in bends.values())])
        for r in range(len(cotangent))
    ]
    return [_stacked(found) for found in zip(*rows, strict=True)]


def _stacked(found: Cotangents) -> Tensor | None:
    """Stacks the results of all cotangents; the graph alone decides which of them exist."""
    tensors = [g.to_dense() if g.is_sparse else g for g in found if g is not None]
    if len(tensors) == 1:  # without a copy, which over a large vocabulary counts
        return tensors[0].unsqueeze(0)
    return torch.stack(tensors) if tensors else None

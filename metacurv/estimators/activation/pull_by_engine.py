"""Pulls cotangents from the loss's boundary down to the layers by backward passes of autograd, one at a time: any graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from metacurv.estimators.graph.torch_private import run_backward
from metacurv.estimators.graph.walk import Walk

# The tensors that are added to the cotangents of some (node, output), [R, *its shape].
Bends = Mapping[tuple[int, int], Tensor]
Cotangents = Sequence[Tensor | None]


class EnginePull:
    """Pulls each cotangent from ``boundary``, a (node, output), down by a backward pass of its own.

    It returns the cotangents at the nodes ``wanted`` and the gradients of the parameters ``indirect``.
    """

    def __init__(
        self,
        walk: Walk,
        boundary: tuple[int, int],
        wanted: Sequence[int],
        indirect: Sequence[Tensor],
    ) -> None:
        self._walk, self._boundary = walk, boundary
        self._inputs = [*(walk.edge(node) for node in wanted), *indirect]

    def __call__(self, cotangent: Tensor, bends: Bends) -> Cotangents:
        """Pulls cotangent [R, *boundary]: for each node wanted [R, *its shape], then gradients of ``indirect``, [R, *shape]."""
        roots = [self._walk.edge(*place) for place in (self._boundary, *bends)]
        rows = [
            run_backward(roots, self._inputs, [cotangent[r], *(b[r] for b in bends.values())])
            for r in range(len(cotangent))
        ]
        return [_stacked(found) for found in zip(*rows, strict=True)]


def _stacked(found: Cotangents) -> Tensor | None:
    """Stacks the results of all cotangents; the graph alone decides which of them exist."""
    tensors = [g.to_dense() if g.is_sparse else g for g in found if g is not None]
    return torch.stack(tensors) if tensors else None

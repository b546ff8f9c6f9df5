"""One probe as the estimators of linear layers use it: products with the sign matrix V of a weight, stored or not."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.linear_uses import LinearUse

# Below this size of a weight, or this batch, making look-up indices costs more than a product with a stored probe.
_SIGNED_ELEMENTS = 2048
_SIGNED_ROWS = 16


@dataclass(frozen=True)
class Probe:
    """Probe ``index``: stored vectors by parameter number, and what ``signed_matmul`` needs to do without them."""

    vectors: dict[int, Tensor]
    run: ModuleType
    key: int
    index: Tensor

    def product(self, x: Tensor, use: LinearUse, *, forward: bool, stored: bool) -> Tensor:
        """What V puts in the weight's place: x [rows, in] -> [rows, out] if ``forward``, else [rows, out] -> [rows, in]."""
        weight = use.weight
        transpose = use.transposed == forward
        if stored:
            v = self.vectors[weight.number]
            return x @ (v.t() if transpose else v)
        rows, cols = weight.tensor.shape
        product: Tensor = self.run.signed_matmul(
            x, self.key, self.index, weight.number, rows, cols, transpose
        )
        return product


def needs_stored_probe(use: LinearUse, rows: int, backend: str) -> bool:
    """Whether products of matrices with ``rows`` rows are best formed with a stored V."""
    return not (
        use.weight.tensor.numel() >= _SIGNED_ELEMENTS
        and rows >= _SIGNED_ROWS
        and ops.signed_matmul_pays(backend, use.weight.tensor)
    )


def dot(x: Tensor, y: Tensor) -> Tensor:
    """x, y: the same shape -> 0-dim."""
    return torch.dot(x.reshape(-1), y.reshape(-1))

"""One probe as the estimators of linear layers use it: products with the sign matrix V of a weight, stored or not."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor

from metacurv import ops
from metacurv.estimators.linear_uses import LinearUse

# Below this size of a weight, or this batch, making look-up indices costs more than a product with a stored probe.
_SIGNED_ELEMENTS = 2048
_SIGNED_ROWS = 16


@dataclass(frozen=True)
class Probe:
    """Probe ``index``: stored vectors by parameter number, and the key by which ``signed_matmul`` does without them."""

    vectors: dict[int, Tensor]
    run: ModuleType
    key: int
    index: Tensor

    def forward(self, a: Tensor, use: LinearUse, *, stored: bool) -> Tensor:
        """Returns a V' + v_b: [rows, in] -> [rows, out]."""
        bias = None if use.bias is None else self.vectors[use.bias.number]
        if not stored:
            product = self._signed(a, use, transpose=use.transposed)
            return product if bias is None else product.add_(bias)
        v = self.vectors[use.weight.number]
        return F.linear(a, v if use.transposed else v.t(), bias)

    def backward(self, d: Tensor, use: LinearUse, *, stored: bool) -> Tensor:
        """Returns d V: [rows, out] -> [rows, in]."""
        if not stored:
            return self._signed(d, use, transpose=not use.transposed)
        v = self.vectors[use.weight.number]
        return torch.mm(d, v if use.transposed else v.t())

    def _signed(self, x: Tensor, use: LinearUse, *, transpose: bool) -> Tensor:
        rows, cols = use.weight.tensor.shape
        product: Tensor = self.run.signed_matmul(
            x, self.key, self.index, use.weight.number, rows, cols, transpose
        )
        return product


def needs_stored_probe(use: LinearUse, backend: str) -> bool:
    """Tells whether products with V are best formed with a stored V."""
    return not (
        use.weight.tensor.numel() >= _SIGNED_ELEMENTS
        and use.rows >= _SIGNED_ROWS
        and ops.signed_matmul_pays(backend, use.weight.tensor)
    )


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Returns the inner product, 0-dim, of x and y, which have the same shape."""
    return torch.dot(x.reshape(-1), y.reshape(-1))

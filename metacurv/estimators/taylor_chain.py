"""Taylor mode's rules for a chain of layers, prepared without a backward pass through the graph."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv.estimators.chain_graph import Chain
from metacurv.estimators.parameters import NumberedParameter
from metacurv.estimators.taylor_rules import (
    TaylorElementwise,
    TaylorLayer,
    TaylorLogSoftmax,
    TaylorRule,
    TaylorSmooth,
)


@torch.no_grad()
def chain_rules(
    loss: Tensor, chain: Chain, parameters: Sequence[NumberedParameter]
) -> list[TaylorRule]:
    """From the lowest layer up."""
    p = chain.log_p.exp()
    rules: list[TaylorRule] = [TaylorLogSoftmax(p, p * chain.sample_weight.unsqueeze(1), -1)]
    d = chain.gradient(loss)
    for index, layer in enumerate(chain.layers):
        right = None if layer.matrix is None else layer.matrix.t()
        rules.append(
            TaylorLayer(
                layer.a,
                right,
                None if right is None else d,
                parameters[layer.weight].number,
                parameters[layer.bias].number if layer.bias >= 0 else None,
                transposed=layer.transposed,
            )
        )
        if layer.matrix is not None:
            at_a = d @ layer.matrix
            slope = chain.slope(index)
            c = chain.second_derivative(index, at_a)
            rules.append(TaylorElementwise(slope) if c is None else TaylorSmooth(slope, c))
            d = at_a * slope
    return rules[::-1]

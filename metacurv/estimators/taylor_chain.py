"""Taylor mode for a chain of layers: its inputs, by no backward pass through the graph, and two ways to run it.

The kernel ``chain_taylor`` takes all probes through all layers in one call. Where it does not serve (float64, CUDA, layers that
fall out of the cache, no kernels) ``Taylor`` does the same, a layer at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.chain_graph import Chain
from metacurv.estimators.parameters import NumberedParameter
from metacurv.estimators.taylor import Pass, Taylor
from metacurv.estimators.taylor_rules import (
    TaylorElementwise,
    TaylorLayer,
    TaylorLogSoftmax,
    TaylorRule,
    TaylorSmooth,
)


@dataclass(frozen=True)
class Descent:
    """Derivatives of every layer but the bottom one, from the top.

    ``cotangents``: dL/dz [N, O]. ``slopes``: s'(z) of the function below the layer, [N, I]. ``curvatures``: c = s''(z) dL/da of
    that function, [N, I]; None where c is 0.
    """

    cotangents: list[Tensor]
    slopes: list[Tensor]
    curvatures: list[Tensor | None]


@torch.no_grad()
def descend(loss: Tensor, chain: Chain) -> Descent:
    """Runs one backward pass by hand."""
    found = Descent([], [], [])
    d = chain.gradient(loss)
    for index, layer in enumerate(chain.layers):
        if layer.matrix is None:
            break
        at_a = d @ layer.matrix
        slope = chain.slope(index)
        found.cotangents.append(d)
        found.slopes.append(slope)
        found.curvatures.append(chain.second_derivative(index, at_a))
        d = at_a.mul_(slope)
    return found


class CompiledTaylor:
    """Draws samples v . (H v) of a chain by the kernel."""

    def __init__(
        self,
        chain: Chain,
        descent: Descent,
        parameters: Sequence[NumberedParameter],
        run: ModuleType,
    ) -> None:
        layers = chain.layers
        numbers = [
            parameters[index].number if index >= 0 else -1
            for layer in layers
            for index in (layer.weight, layer.bias)
        ]
        nothing = chain.log_p.new_empty(0)
        below = [
            (layers[index].a, slope, chain.is_rectified(index))
            for index, slope in enumerate(descent.slopes)
        ]
        self._run = partial(
            run.chain_taylor,
            chain.log_p,
            chain.sample_weight,
            numbers=numbers,
            transposed=[layer.transposed for layer in layers],
            inputs=[layer.a for layer in layers],
            weights=[layer.matrix for layer in layers if layer.matrix is not None],
            slopes=[a if is_rectified else s for a, s, is_rectified in below],
            rectified=[is_rectified for _, _, is_rectified in below],
            cotangents=descent.cotangents,
            curvatures=[nothing if c is None else c for c in descent.curvatures],
        )

    def samples(self, *, seed: int, first_probe: int, n_samples: int) -> Tensor:
        """Does what ``Taylor.samples`` does."""
        found: Tensor = self._run(
            seed=ops.as_int64(seed), probe=first_probe % (1 << 32), n_probes=n_samples
        )
        return found


def taylor_of_chain(
    loss: Tensor, chain: Chain, parameters: Sequence[NumberedParameter], *, backend: str
) -> Taylor | CompiledTaylor:
    """Makes the faster of both for a chain all of whose weights are to be measured."""
    descent = descend(loss, chain)
    run = ops.implementation(backend, chain.log_p.device)
    weights = [parameters[layer.weight].tensor for layer in chain.layers]
    if run.chain_is_compiled(chain.log_p, weights):
        return CompiledTaylor(chain, descent, parameters, run)
    passes = [
        Pass(rule, is_foot=index == 0, is_under_head=False)
        for index, rule in enumerate(_rules(chain, descent, parameters))
    ]
    used = {index for layer in chain.layers for index in (layer.weight, layer.bias)}
    probed = [parameter for index, parameter in enumerate(parameters) if index in used]
    widths = [chain.log_p.shape[1], *(layer.a.shape[1] for layer in chain.layers[:-1])]
    largest = len(chain.log_p) * max(widths)
    return Taylor(passes, probed, chain.log_p.device, largest, backend)


def _rules(
    chain: Chain, descent: Descent, parameters: Sequence[NumberedParameter]
) -> list[TaylorRule]:
    """Returns the rules from the lowest layer up."""
    p = chain.log_p.exp()
    rules: list[TaylorRule] = [TaylorLogSoftmax(p, p * chain.sample_weight.unsqueeze(1), -1)]
    for index, layer in enumerate(chain.layers):
        is_bottom = layer.matrix is None
        rules.append(
            TaylorLayer(
                layer.a,
                None if layer.matrix is None else layer.matrix.t(),
                None if is_bottom else descent.cotangents[index],
                parameters[layer.weight].number,
                parameters[layer.bias].number if layer.bias >= 0 else None,
                transposed=layer.transposed,
            )
        )
        if not is_bottom:
            slope, c = descent.slopes[index], descent.curvatures[index]
            rules.append(TaylorElementwise(slope) if c is None else TaylorSmooth(slope, c))
    return rules[::-1]

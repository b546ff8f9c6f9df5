"""The trace's parts for a chain: the same numbers as ``ActivationSpace``, in one call of a kernel."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from metacurv.estimators.mlp.recognise import Chain
from metacurv.estimators.problem.batches import how_many
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.ops._reference import OpSet


class ChainSpace:
    """A chain with the slopes between its layers; ``max_memory``: bytes for cotangents that are pulled at once."""

    def __init__(
        self,
        chain: Chain,
        parameters: Sequence[NumberedParameter],
        run: OpSet,
        max_memory: int,
    ) -> None:
        self.chain = chain
        self.parameters = list(parameters)
        self.device = chain.log_p.device
        self._run = run
        self.inputs = [layer.a for layer in chain.layers]
        inner = chain.layers[:-1]
        rectified = [layer.is_rectified for layer in inner]
        # A ReLU's result stands for its slope.
        slopes = [layer.a if layer.is_rectified else layer.slope() for layer in inner]
        weights = [layer.matrix for layer in chain.layers if layer.matrix is not None]
        self._layers = (self.inputs, weights, slopes, rectified)
        width = max(chain.log_p.shape[1], *(a.shape[1] for a in self.inputs))
        # Cotangents of two layers at a time, and a float64 sum for each row and layer.
        size = len(chain.log_p) * (2 * width * chain.log_p.element_size() + 8 * len(self.inputs))
        self.at_once = how_many(size, max_memory)
        self.column_count = chain.columns
        self.apart = 1

    def draw(self, key: int, first_probe: int, n_samples: int) -> Tensor:
        """Does what ``ActivationSpace.draw`` does, for the Gauss-Newton matrix or a chain that is linear in pieces."""
        chain = self.chain
        parts = [
            self._run.chain_draws(
                chain.log_p,
                chain.sample_weight,
                key,
                (first_probe + start) % (1 << 32),
                min(self.at_once, n_samples - start),
                *self._layers,
            )
            for start in range(0, n_samples, self.at_once)
        ]
        return self.by_parameter(parts[0] if len(parts) == 1 else torch.cat(parts))

    def draw_rows(self, key: int, first_probe: int, n_samples: int) -> Tensor:
        """Returns ``draw`` as one row a sample, float64 [n_samples, 1, parameters]: the kernel sums over examples."""
        return self.draw(key, first_probe, n_samples).unsqueeze(1)

    def columns(self, start: int, stop: int) -> Tensor:
        """Returns the share of columns ``start`` ... ``stop - 1``, float64 [parameters]."""
        chain = self.chain
        table = self._run.chain_columns(
            chain.log_p, chain.sample_weight, start, stop, *self._layers
        )
        return self.by_parameter(table).sum(0)

    def by_parameter(self, table: Tensor) -> Tensor:
        """Reorders [R, 2 L], weight and bias of each layer from the top, to [R, parameters]."""
        owners = [index for layer in self.chain.layers for index in (layer.weight, layer.bias)]
        column_of = {index: column for column, index in enumerate(owners)}
        places = [column_of.get(index, -1) for index in range(len(self.parameters))]
        if -1 in places:  # parameters that the loss does not depend on
            table = torch.cat([table, table.new_zeros(len(table), 1)], dim=1)
        return table.index_select(1, _index(tuple(places), table.shape[1], table.device))


@lru_cache(maxsize=64)
def _index(places: tuple[int, ...], columns: int, device: torch.device) -> Tensor:
    """Returns column numbers as a tensor; -1 stands for the last."""
    with torch.inference_mode(False):  # it outlives the caller's mode
        return torch.tensor([place % columns for place in places], device=device)

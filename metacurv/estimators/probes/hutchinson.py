"""Hutchinson's estimator of the Hessian trace in parameter space, for any loss with a twice differentiable graph.

    tr H = E[v . H v],  v_i = +1 or -1 with equal probability      (Hutchinson 1990)
    Var[v . H v] = 2 (||H||_F^2 - sum_i H_ii^2)                    (Avron and Toledo 2011)

The graph decides how v . H v is formed (``choose_products``). Probes are written into one reused copy of the parameters,
and v . H v is folded into running statistics on the device, so nothing waits for the host until the result is read.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.probes.double_backward import DoubleBackward
from metacurv.estimators.probes.products import Products, choose_products
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.problem.user_state import without_hooks
from metacurv.estimators.statistics.moments import RunningMoments, TraceReading

_BATCH = 64  # merging a batch costs a dozen small tensor operations, whatever its size


class ProbeLoop:
    """Draws samples v_p . (H v)_p by ``products``, without a host sync; the probe's buffers serve all of them."""

    def __init__(self, products: Products, *, seed: int, backend: str) -> None:
        self._products = products
        self._device = products.parameters[0].tensor.device
        self._run = ops.implementation(backend, self._device)
        self._key = ops.as_int64(seed)
        self._numbers = [p.number for p in products.probed]
        self._vectors = [
            torch.empty(p.tensor.shape, dtype=p.tensor.dtype, device=self._device)
            for p in products.probed
        ]

    def fold(self, first_probe: int, n_samples: int) -> tuple[Tensor, Tensor]:
        """Folds the samples of a double backward into mean and M2, float64 [curved + 1], with one op a probe."""
        assert isinstance(self._products, DoubleBackward)
        probe = torch.full((), first_probe, dtype=torch.int64, device=self._device)
        count = torch.zeros_like(probe)
        mean = m2 = torch.empty(0)
        for k in range(n_samples):
            self._fill(probe)
            products, numbers, offsets = self._products.products(self._vectors)
            if k == 0:
                mean = torch.zeros(len(products) + 1, dtype=torch.float64, device=self._device)
                m2 = torch.zeros_like(mean)
            self._run.hutchinson_accumulate_(
                mean, m2, count, products, self._key, probe, numbers, offsets
            )
            del products  # or they would be there still while the next are made
            probe.add_(1)
        return mean, m2

    def _fill(self, probe: Tensor) -> None:
        offsets = [0] * len(self._numbers)
        self._run.rademacher_(self._vectors, self._key, probe, self._numbers, offsets)

    def batches(self, first_probe: int, n_samples: int) -> Iterator[Tensor]:
        """Yields the samples of probes ``first_probe`` ... ``first_probe + n_samples - 1``: float64 [up to 64, curved]."""
        probe = torch.full((), first_probe, dtype=torch.int64, device=self._device)
        for start in range(0, n_samples, _BATCH):
            count = min(_BATCH, n_samples - start)
            terms: list[Tensor] = []
            for _ in range(count):
                self._fill(probe)
                terms += self._products.terms(self._vectors, self._run, self._key, probe)
                probe.add_(1)
            yield self._products.samples(terms, count)


def read_trace(
    products: Products, *, seed: int, first_probe: int, n_samples: int, backend: str
) -> TraceReading:
    """Averages v . H v over probes ``first_probe`` ... ``first_probe + n_samples - 1``, without a host sync."""
    loop = ProbeLoop(products, seed=seed, backend=backend)
    if isinstance(products, DoubleBackward):
        mean, m2 = loop.fold(first_probe, n_samples)
    else:
        moments = RunningMoments()
        for batch in loop.batches(first_probe, n_samples):
            moments.add(torch.cat([batch, batch.sum(1, keepdim=True)], dim=1))
        mean, m2 = moments.mean, moments.m2
    return TraceReading(
        mean=mean,
        m2=m2,
        curved=[p.name for p in products.curved],
        names=[p.name for p in products.parameters],
        n_samples=n_samples,
        seed=seed,
    )


def trace_of_loss(
    loss: Tensor,
    parameters: list[NumberedParameter],
    *,
    seed: int,
    first_probe: int,
    n_samples: int,
    backend: str,
) -> TraceReading:
    """Calls ``read_trace`` with the fastest products for a checked ``loss`` (on the reference backend autograd's)."""
    # Backward passes take the dtypes that the forward pass chose; an autocast region around them would change these.
    # Nor can they run in inference mode, which records nothing.
    with (
        torch.autocast(loss.device.type, enabled=False),
        torch.inference_mode(False),
        without_hooks(parameters),
    ):
        products = choose_products(loss, parameters, backend)
        return read_trace(
            products, seed=seed, first_probe=first_probe, n_samples=n_samples, backend=backend
        )

"""Hutchinson's samples one by one, for the Hessian and for the Gauss-Newton matrix of a model's loss.

v . H v is the sum of the parts v_p . (H v)_p, each the sample of one parameter's block, and so is v . G v.
"""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.probes.gauss_newton import GaussNewtonProducts
from metacurv.estimators.probes.hutchinson import ProbeLoop
from metacurv.estimators.probes.products import choose_products
from metacurv.estimators.problem.model_loss import Forward, ModelLoss
from metacurv.estimators.problem.user_state import without_hooks


class HessianSamples:
    """Draws samples v_p . (H v)_p of every parameter p.

    Args:
        problem: the model, loss and batch to measure.
        forward: a forward pass of it.
        seed: as for ``hessian_trace``, whose probes these are.
        backend: as for ``hessian_trace``.
    """

    def __init__(self, problem: ModelLoss, forward: Forward, *, seed: int, backend: str) -> None:
        self._problem = problem
        with without_hooks(problem.parameters):
            self._products = choose_products(
                forward.loss, problem.parameters, backend, again=problem.again
            )
        self._loop = ProbeLoop(self._products, seed=seed, backend=backend)

    def samples(self, first_probe: int, n_samples: int) -> Tensor:
        """Returns one row a probe: float64 [n_samples, parameters]."""
        with without_hooks(self._problem.parameters):
            rows = torch.cat(list(self._loop.batches(first_probe, n_samples)))
        column = {p.number: i for i, p in enumerate(self._problem.parameters)}
        found = rows.new_zeros(n_samples, len(column))
        found[:, [column[p.number] for p in self._products.curved]] = rows
        return found


class GaussNewtonSamples:
    """Draws samples v_p . (G v)_p of every parameter p.

    Args:
        problem: the model, loss and batch to measure.
        forward: a forward pass of it whose output is one tensor.
        seed: as for ``hessian_trace``, whose probes these are.
        backend: as for ``hessian_trace``.
    """

    def __init__(self, problem: ModelLoss, forward: Forward, *, seed: int, backend: str) -> None:
        self._problem = problem
        self._run = ops.implementation(backend, problem.device)
        self._key = ops.as_int64(seed)
        self._products = GaussNewtonProducts(problem, forward)
        self._vectors = {p.name: torch.empty_like(p.tensor) for p in problem.parameters}

    def samples(self, first_probe: int, n_samples: int) -> Tensor:
        """Returns one row a probe: float64 [n_samples, parameters]."""
        with without_hooks(self._problem.parameters):
            return torch.stack(
                [self._sample(probe) for probe in range(first_probe, first_probe + n_samples)]
            )

    def _sample(self, probe: int) -> Tensor:
        parameters = self._problem.parameters
        device = self._problem.device
        numbers = [p.number for p in parameters]
        index = torch.full((), probe, dtype=torch.int64, device=device)
        vectors = list(self._vectors.values())
        self._run.rademacher_(vectors, self._key, index, numbers, [0] * len(numbers))
        products = self._products.times(self._vectors)
        used = [i for i, x in enumerate(products) if x is not None]
        dense = [x for x in products if x is not None]
        sample = torch.zeros(len(parameters), dtype=torch.float64, device=device)
        sample[used] = self._run.signed_sum(
            dense, self._key, index, [numbers[i] for i in used], [0] * len(used)
        )
        return sample

"""Hutchinson's samples one by one, for the Hessian and for the Gauss-Newton matrix of a model's loss.

The Gauss-Newton matrix G = J' H_out J takes v . G v part by part as v_p . (G v)_p: H_out by a double backward through the loss
alone, J' by one backward pass, J v by a derivative of that (Schraudolph 2002, "Fast curvature matrix-vector products").
"""

from __future__ import annotations

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.activation.loss_factor import GenericFactor
from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.graph.torch_private import run_backward
from metacurv.estimators.probes.hutchinson import ProbeLoop
from metacurv.estimators.probes.jvp import pull_graph, push_tangent, push_through
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

    J' w is linear in w, so J v is the derivative of v . J' w in w: one graph of J' w serves all probes (the "double backward"
    trick). It sees what autograd's own J' sees, with padding rows and detached parts as constants; operations whose backward
    pass cannot be differentiated (fused attention) go through forward mode instead.

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
        assert forward.edge is not None  # why_not saw to it
        assert forward.tensor is not None
        self._edge = forward.edge
        output = forward.tensor.detach()
        self._factor = GenericFactor(
            forward.loss, forward.edge, output, samples=1, again=problem.again
        )
        self._vectors = {p.name: torch.empty_like(p.tensor) for p in problem.parameters}
        self._w = torch.zeros_like(output, requires_grad=True)
        self._pulled = self._pull_graph()

    def _pull_graph(self) -> dict[str, Tensor] | None:
        """Returns ``pull_graph`` of the output; None where it has no derivative."""
        parameters = self._problem.parameters
        check_differentiable([self._edge.node], [p.tensor for p in parameters], only_linear=True)
        try:
            with torch.enable_grad():
                pulled = pull_graph(self._edge, parameters, self._w)
                push_through(pulled, self._w, self._vectors)
        except RuntimeError:
            return None
        return pulled

    def samples(self, first_probe: int, n_samples: int) -> Tensor:
        """Returns one row a probe: float64 [n_samples, parameters]."""
        with without_hooks(self._problem.parameters):
            return torch.stack(
                [self._sample(probe) for probe in range(first_probe, first_probe + n_samples)]
            )

    def _push(self) -> Tensor:
        """Returns J v."""
        if self._pulled is None:
            return push_tangent(self._problem, self._vectors, "auto", None, of_logits=True)[1]
        return push_through(self._pulled, self._w, self._vectors)

    def _sample(self, probe: int) -> Tensor:
        parameters = self._problem.parameters
        device = self._problem.device
        numbers = [p.number for p in parameters]
        index = torch.full((), probe, dtype=torch.int64, device=device)
        vectors = list(self._vectors.values())
        self._run.rademacher_(vectors, self._key, index, numbers, [0] * len(numbers))
        cotangent = self._factor.times_hessian(self._push()).to(self._w.dtype)
        tensors = [p.tensor for p in parameters]
        products = run_backward([self._edge], tensors, [cotangent])
        used = [i for i, x in enumerate(products) if x is not None]
        dense = [x.to_dense() if x.is_sparse else x for x in products if x is not None]
        sample = torch.zeros(len(parameters), dtype=torch.float64, device=device)
        sample[used] = self._run.signed_sum(
            dense, self._key, index, [numbers[i] for i in used], [0] * len(used)
        )
        return sample

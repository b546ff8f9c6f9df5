"""Products of the Gauss-Newton matrix of a batch with vectors, G v = J' H_out J v.

H_out v takes a double backward through the loss alone, J' one backward pass, and J v a derivative of that (Schraudolph 2002,
"Fast curvature matrix-vector products"). J' w is linear in w, so J v is the derivative of v . J' w in w: one graph of J' w
serves all vectors (the "double backward" trick). It sees what autograd's own J' sees, with padding rows and detached parts as
constants; operations whose backward pass cannot be differentiated (fused attention) go through forward mode instead.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from metacurv.estimators.activation.loss_factor import GenericFactor
from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.graph.torch_private import run_backward
from metacurv.estimators.probes.jvp import pull_graph, push_tangent, push_through
from metacurv.estimators.problem.model_loss import Forward, ModelLoss


class GaussNewtonProducts:
    """Multiplies vectors by the Gauss-Newton matrix.

    Args:
        problem: the model, loss and batch to measure.
        forward: a forward pass of it whose output is one tensor.
    """

    def __init__(self, problem: ModelLoss, forward: Forward) -> None:
        self._problem = problem
        assert forward.edge is not None  # why_not saw to it
        assert forward.tensor is not None
        self._edge = forward.edge
        output = forward.tensor.detach()
        self._factor = GenericFactor(
            forward.loss, forward.edge, output, samples=1, again=problem.again
        )
        self._w = torch.zeros_like(output, requires_grad=True)
        self._pulled = self._pull_graph()

    def _pull_graph(self) -> dict[str, Tensor] | None:
        """Returns ``pull_graph`` of the output; None where it has no derivative."""
        parameters = self._problem.parameters
        check_differentiable([self._edge.node], [p.tensor for p in parameters], only_linear=True)
        try:
            with torch.enable_grad():
                pulled = pull_graph(self._edge, parameters, self._w)
                push_through(pulled, self._w, {p.name: p.tensor.detach() for p in parameters})
        except RuntimeError:
            return None
        return pulled

    def push(self, vectors: Mapping[str, Tensor]) -> Tensor:
        """Returns J v, of the output's shape; ``vectors``: a tensor for each parameter, by name."""
        if self._pulled is None:
            return push_tangent(self._problem, vectors, "auto", None, of_logits=True)[1]
        return push_through(self._pulled, self._w, vectors)

    def times(self, vectors: Mapping[str, Tensor]) -> list[Tensor | None]:
        """Returns G v of each parameter; None for one that the output does not depend on."""
        cotangent = self._factor.times_hessian(self.push(vectors)).to(self._w.dtype)
        found = run_backward(
            [self._edge], [p.tensor for p in self._problem.parameters], [cotangent]
        )
        return [g.to_dense() if g is not None and g.is_sparse else g for g in found]

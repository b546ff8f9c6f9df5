"""Gradients that can be differentiated again, and Hessian-vector products by a backward pass through them.

Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian".
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv.estimators.graph.torch_private import ERROR, run_backward
from metacurv.estimators.graph.walk import nodes_below
from metacurv.estimators.problem.errors import explain_differentiation_errors


def gradient_graph(
    loss: Tensor, inputs: Sequence[Any], *, start: Tensor | None = None
) -> list[Tensor | None]:
    """Returns gradients of ``loss`` that can be differentiated again; None where the loss does not depend on an input.

    ``torch.autograd.grad`` leaves ``.grad`` alone and builds no reference cycle, unlike ``backward(create_graph=True)``.

    Args:
        loss: one element.
        inputs: tensors or graph edges.
        start: the 1 that the backward pass starts from; one that requires a gradient makes every gradient carry a graph.

    Raises:
        ValueError: the loss depends on none of the inputs.
    """
    with explain_differentiation_errors("the gradient of loss with create_graph=True"):
        gradients = torch.autograd.grad(
            loss, list(inputs), start, create_graph=True, allow_unused=True
        )
    if all(gradient is None for gradient in gradients):
        raise ValueError("loss must depend on params, but its graph reaches none of them")
    return list(gradients)


def refuse_cut_graph(gradients: Iterable[Tensor | None]) -> None:
    """Raises NotTwiceDifferentiableError where a once-differentiable function cuts the gradient's graph.

    torch puts an error node there, but one without a path to the parameters, so a backward pass towards them alone would
    leave it out and find too little curvature without a word.
    """
    roots = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    with explain_differentiation_errors(
        "differentiating the gradient of loss with create_graph=True"
    ):
        if any(node.name() == ERROR for node in nodes_below(roots)):
            raise RuntimeError(
                "trying to differentiate twice a function that was marked with @once_differentiable"
            )


def hessian_vector_products(
    gradients: Sequence[Tensor], vectors: Sequence[Tensor], inputs: Sequence[Any]
) -> Sequence[Tensor | None]:
    """Returns the gradient of sum(gradients . vectors) in ``inputs``, None where no path leads. The graph stays usable."""
    if not gradients:
        return [None] * len(inputs)
    with explain_differentiation_errors("the Hessian-vector product (gradient of gradient . v)"):
        products = run_backward(gradients, inputs, vectors)
    return [h.to_dense() if h is not None and h.is_sparse else h for h in products]

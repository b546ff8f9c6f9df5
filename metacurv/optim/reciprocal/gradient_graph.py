"""Checks the graph of gradients that ``backward(create_graph=True)`` leaves: it must hold the whole second derivative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from metacurv.estimators.graph.custom_functions import check_differentiable, custom_functions
from metacurv.estimators.graph.differentiate import refuse_cut_graph
from metacurv.estimators.graph.walk import nodes_below
from metacurv.estimators.problem.errors import NotTwiceDifferentiableError
from metacurv.estimators.problem.parameters import NumberedParameter

# Nodes by which gradients of several uses add up.
_SUMS = ("torch::autograd::CopyBackwards", "AddBackward0")


def check_gradient_graph(
    parameters: Sequence[NumberedParameter], before: Mapping[Tensor, Tensor]
) -> None:
    """Checks that the gradients' graph holds the whole second derivative, as far as it shows.

    The loss is gone, so a part of a gradient that came without a graph cannot be told from one that is constant.

    Args:
        parameters: the parameters that are stepped.
        before: the gradients of some of them before the backward pass. It adds to them, so zeros are a part without a graph.

    Raises:
        NotTwiceDifferentiableError: a custom function has no second derivative, or a part of a gradient has no graph.
    """
    gradients = [p.tensor.grad for p in parameters]
    refuse_cut_graph(gradients)
    roots = [g.grad_fn for g in gradients if g is not None and g.grad_fn is not None]
    functions = custom_functions(nodes_below(roots))
    check_differentiable(roots, [p.tensor for p in parameters])
    for parameter, gradient in zip(parameters, gradients, strict=True):
        what = ""
        if gradient is not None and gradient.grad_fn is None:
            what = "carries no graph" if functions else ""
        elif gradient is not None and _has_bare_part(gradient, before.get(parameter.tensor)):
            what = "has a part without a graph"
        if what:
            raise NotTwiceDifferentiableError(
                f"the gradient of {parameter.name!r} {what}, after backward(create_graph=True): either the loss is linear "
                "there, or a custom function without a second derivative is on the way, which the gradient cannot tell. Call "
                "update_curvature(loss) between the forward and the backward pass instead, which can, and leave out "
                "create_graph=True"
            )


def _has_bare_part(gradient: Tensor, before: Tensor | None) -> bool:
    """Tells whether a sum of gradients has a term without a graph, beside the gradient ``before``, where that was zeros."""
    assert gradient.grad_fn is not None
    bare, sums = 0, [gradient.grad_fn]
    for node in sums:  # grows as it goes
        if node.name() in _SUMS:
            below = [edge for edge, _ in node.next_functions]
            bare += node.name() == "AddBackward0" and None in below
            sums.extend(edge for edge in below if edge is not None)
    return bare > (before is not None and not bool(before.count_nonzero()))

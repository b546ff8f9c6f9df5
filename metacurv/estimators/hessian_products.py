"""Chooses the way to samples v . (H v) that serves a graph.

Through stacks of known layers a probe is pushed and pulled by rules (``forward_over_reverse``). Else one gradient graph serves
all probes, and each costs one backward pass through it (``double_backward``, and always so on the reference backend), less what
the factors of linear layers save (``linear_factors``).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from metacurv.estimators.custom_functions import check_differentiable
from metacurv.estimators.double_backward import (
    DoubleBackward,
    gradient_graph,
    refuse_cut_graph,
)
from metacurv.estimators.elsewhere import Again
from metacurv.estimators.errors import NotApplicable, explain_differentiation_errors
from metacurv.estimators.forward_over_reverse import ForwardOverReverse
from metacurv.estimators.graph import LossGraph, nodes_below
from metacurv.estimators.linear_factors import FactoredDoubleBackward, worth_factoring
from metacurv.estimators.linear_uses import find_linear_uses
from metacurv.estimators.loss_checks import warn_of_module_hooks
from metacurv.estimators.parameters import NumberedParameter
from metacurv.estimators.tangent_plan import plan_tangents

# The ways to samples v . (H v) of every parameter, probe by probe; they agree up to rounding.
Products = DoubleBackward | FactoredDoubleBackward | ForwardOverReverse


def choose_products(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    backend: str,
    *,
    keeps_samples: bool = False,
    again: Again | None = None,
) -> Products:
    """Returns the fastest way that serves the graph of ``loss``; on the reference backend autograd's.

    keeps_samples: see ``DoubleBackward``; the other ways always keep them.
    again: see ``check_differentiable``.
    """
    assert loss.grad_fn is not None  # check_loss saw to it
    graph = LossGraph(loss.grad_fn)
    # A once-differentiable function leaves its mark only on gradients that carry a graph on arrival.
    check_differentiable([loss.grad_fn], [p.tensor for p in parameters], again=again)
    if again is None and graph.has_python_functions:
        warn_of_module_hooks(node.name() for node in nodes_below([loss.grad_fn]))
    start = torch.ones_like(loss, requires_grad=True) if graph.has_python_functions else None
    products = None if backend == "reference" else _fast(loss, graph, parameters, backend, start)
    if products is None:
        gradients = gradient_graph(loss, [p.tensor for p in parameters], start=start)
        products = DoubleBackward(gradients, parameters, keeps_samples=keeps_samples)
    if start is not None:
        refuse_cut_graph(products.gradients)
    return products


def _fast(
    loss: Tensor,
    graph: LossGraph,
    parameters: Sequence[NumberedParameter],
    backend: str,
    start: Tensor | None,
) -> Products | None:
    """Returns the first fast way that serves: rules for a stack of known layers, then the factors of linear layers; or None."""
    uses = find_linear_uses(graph, parameters)
    with suppress(NotApplicable):
        with explain_differentiation_errors("reading what the forward pass saved"), torch.no_grad():
            steps = plan_tangents(graph, parameters, uses, backend)
        if steps is not None:
            return ForwardOverReverse(loss, parameters, steps, start=start)
    with suppress(NotApplicable):
        light = worth_factoring(uses, graph, parameters)
        if light:
            return FactoredDoubleBackward(loss, parameters, light, backend=backend, start=start)
    return None

"""Chooses the way to samples v . (H v) that serves a graph.

Through stacks of known layers a probe is pushed and pulled by rules (``forward_over_reverse``). Else one gradient graph serves
all probes, and each costs one backward pass through it (``double_backward``, and always so on the reference backend).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import Tensor

from metacurv._warnings import warn_user
from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.graph.differentiate import gradient_graph, refuse_cut_graph
from metacurv.estimators.graph.node_kinds import HOOK
from metacurv.estimators.graph.walk import walk_graph
from metacurv.estimators.probes.double_backward import DoubleBackward
from metacurv.estimators.problem.elsewhere import Again
from metacurv.estimators.problem.errors import NotApplicable, explain_differentiation_errors
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.tangents.forward_over_reverse import ForwardOverReverse
from metacurv.estimators.tangents.plan import plan_tangents

# The ways to samples v . (H v) of every parameter, probe by probe; they agree up to rounding.
Products = DoubleBackward | ForwardOverReverse


def choose_products(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    backend: str,
    *,
    again: Again | None = None,
) -> Products:
    """Returns the fastest way that serves the graph of ``loss``; on the reference backend autograd's.

    ``again``: see ``check_differentiable``.
    """
    assert loss.grad_fn is not None  # check_loss saw to it
    walk = walk_graph(loss.grad_fn, parameters)
    has_custom_functions = walk.has_custom_functions
    # A once-differentiable function leaves its mark only on gradients that carry a graph on arrival.
    check_differentiable([loss.grad_fn], [p.tensor for p in parameters], again=again)
    if again is None and has_custom_functions:
        _warn_of_module_hooks(walk.names)
    start = torch.ones_like(loss, requires_grad=True) if has_custom_functions else None
    products: Products | None = None
    if backend != "reference":
        with suppress(NotApplicable):
            what = "reading what the forward pass saved"
            with explain_differentiation_errors(what), torch.no_grad():
                steps = plan_tangents(walk, parameters)
            if steps is not None:
                products = ForwardOverReverse(loss, parameters, steps, start=start)
    if products is None:
        gradients = gradient_graph(loss, [p.tensor for p in parameters], start=start)
        products = DoubleBackward(gradients, parameters)
    if start is not None:
        refuse_cut_graph(products.gradients)
    return products


def _warn_of_module_hooks(names: Sequence[str]) -> None:
    """Warns if a graph's nodes show a full backward hook of a module, which a graph holds for good."""
    if any(name.startswith(HOOK) for name in names):
        warn_user(
            "a full backward hook of a module stands in the graph of loss: it runs in every reading too, and where it changes "
            "gradients, what is measured is no curvature of the loss. estimate_trace, which runs the model itself, leaves such "
            "hooks out; else remove the hook before the forward pass",
            UserWarning,
        )

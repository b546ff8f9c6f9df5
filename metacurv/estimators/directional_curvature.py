"""Curvature of the loss along one direction, the number that step-size rules ask for.

    u . G u = z' . H_out z',  z' = J u      J the Jacobian of the model, H_out the Hessian of the loss in the model's output

G = J' H_out J is the generalized Gauss-Newton matrix (Schraudolph 2002, "Fast curvature matrix-vector products"). z' comes from
one pass forward through the model (``push_tangent``), H_out z' from a double backward through the loss alone. u . H u takes a
double backward through model and loss (Pearlmutter 1994).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from metacurv import _validate
from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.graph.differentiate import (
    gradient_graph,
    hessian_vector_products,
    refuse_cut_graph,
)
from metacurv.estimators.probes.jvp import push_tangent
from metacurv.estimators.problem.direction import Direction, read_direction
from metacurv.estimators.problem.elsewhere import Again, elsewhere
from metacurv.estimators.problem.model_loss import ModelLoss, check_loss
from metacurv.estimators.problem.parameters import number_parameters
from metacurv.estimators.problem.user_state import without_hooks
from metacurv.processes.fully_sharded import as_one_process
from metacurv.processes.ranks import Ranks

_METHODS = {"ggn": ("auto", "forward_mode", "finite_difference"), "hessian": ("auto",)}


def directional_curvature(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    inputs: Any,
    targets: Any,
    direction: Direction,
    *,
    kind: Literal["ggn", "hessian"] = "ggn",
    method: Literal["auto", "forward_mode", "finite_difference"] = "auto",
    step: float | None = None,
    process_group: Any = None,
) -> float:
    """Measures the curvature u . G u or u . H u of the loss ``loss_fn(model(inputs), targets)`` along a direction u.

    H is the Hessian of the loss in the model's parameters theta, G the generalized Gauss-Newton matrix (GGN), its part that
    neglects the curvature of the model. The loss at theta + t u is L + t g . u + t^2/2 u . H u + ..., so the value has the unit
    of the loss if t has none. It is not divided by |u|^2: twice the direction has four times the curvature. With ``kind="ggn"``
    it is >= 0 up to rounding if the loss is convex in the output.

    The function changes no parameter, ``.grad``, buffer or mode, and not the random state. All its passes see the same random
    numbers, so that dropout has one mask.

    Args:
        model: called with a tuple of inputs as positional arguments, a mapping as keyword arguments, else one argument.
        loss_fn: called with the model's output and ``targets``; returns a scalar.
        inputs: one batch, as ``model`` takes it.
        targets: the second argument of ``loss_fn``.
        direction: u, as a list or tuple of tensors, one for each of ``model.parameters()`` that requires a gradient, of its
            shape; or as a mapping from names in ``model.named_parameters()`` to tensors, where missing names count as 0; or as
            one flat tensor of all their elements. It is cast to the parameters' dtypes.
        kind: "ggn", for which the output must be one tensor, or "hessian".
        method: how J u is computed for the GGN, with J the Jacobian of the model. "forward_mode" differentiates forward;
            "finite_difference" takes the difference of two outputs, with a measured relative error below 1e-9 in float64, of
            1e-6 to 1e-3 in float32 (5e-2 with ReLU, whose kinks it blurs over the step) and 1e-3 to 2e-1 in bfloat16; "auto" is
            the first where the model supports it. For the Hessian only "auto", a double backward. Forward mode counts tensors
            that the model ``detach()``es as constants, differences do not; neither stops at ``torch.no_grad()``.
        step: h of (f(theta + h u) - f(theta - h u)) / 2h, > 0, for finite differences only. By default h u has a size of
            0.15 eps^(1/3) relative to the parameters that it moves, with eps the spacing of the coarsest dtype among theirs and
            the output's.
        process_group: the ranks that measure together along one direction, each of them its own batch, and get one result, the
            mean: None for all processes where ``torch.distributed`` is initialised, which must then all call (the model's own
            group where it is a ``DistributedDataParallel``); a group of ``torch.distributed``; or False for this process alone.

    Returns:
        The curvature, summed in float64.

    Raises:
        TypeError: an argument, or with ``kind="ggn"`` the model's output, is of the wrong type.
        ValueError: an argument is out of range or does not fit the model; the loss is not a finite scalar with a graph.
        NotTwiceDifferentiableError: the loss, or with ``kind="hessian"`` also the model, cannot be differentiated twice.
        RuntimeError: ``method="forward_mode"`` and an operation of the model does not support it, or measuring failed on
            another rank.

    References:
        - Schraudolph 2002, "Fast curvature matrix-vector products for second-order gradient descent" (Gauss-Newton matrix).
        - Pearlmutter 1994, "Fast exact multiplication by the Hessian".

    Examples:
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> inputs, targets = torch.tensor([[1.0, 2.0]]), torch.zeros(1, 1)
        >>> mse = torch.nn.functional.mse_loss  # (w . x - y)^2, whose Hessian is 2 x x'
        >>> directional_curvature(model, mse, inputs, targets, {"weight": torch.tensor([[1.0, 1.0]])})
        18.0
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {_validate.describe(model)}")
    _validate.loss_function(loss_fn)
    if not isinstance(kind, str) or kind not in _METHODS:
        raise ValueError(f"kind must be 'ggn' or 'hessian', got {_validate.describe(kind)}")
    if method not in _METHODS[kind]:
        raise ValueError(
            f"method must be one of {', '.join(_METHODS[kind])} for kind={kind!r}, got {_validate.describe(method)}"
        )
    if step is not None and _validate.real("step", step, low=0) == 0:
        raise ValueError("step must be > 0, got 0")
    ranks = Ranks(model, process_group)
    with as_one_process(model), torch.inference_mode(False):
        parameters = number_parameters(model.named_parameters(), of_model=True)
        problem = ModelLoss(model, loss_fn, inputs, targets, parameters)
        like = torch.empty((), dtype=torch.float64, device=problem.device)

        def measure_here() -> Tensor:
            moving = read_direction(direction, parameters)
            if kind == "hessian":
                vectors = [moving.get(p.name) for p in parameters]
                with problem.state_kept(), without_hooks(parameters):
                    loss, leaves = problem.forward().loss, [p.tensor for p in parameters]
                    value = _quadratic_form(loss, leaves, vectors, problem.again)
            else:
                output, tangent = push_tangent(problem, moving, method, step)
                leaf = output.requires_grad_()
                again = lambda: problem.loss_of(*elsewhere([leaf]))  # noqa: E731
                value = _quadratic_form(problem.loss_of(leaf), [leaf], [tangent], again)
            return torch.full_like(like, value)

        return float(ranks.mean(measure_here, like))


def _quadratic_form(
    loss: Tensor, leaves: Sequence[Tensor], vectors: Sequence[Tensor | None], again: Again
) -> float:
    """Returns v . H v by a double backward, with H the Hessian of ``loss`` in ``leaves``; None stands for zeros."""
    check_loss(loss)
    assert loss.grad_fn is not None  # check_loss saw to it
    # Backward passes take the dtypes that the forward pass chose.
    with torch.autocast(loss.device.type, enabled=False):
        check_differentiable([loss.grad_fn], leaves, again=again)
        # A once-differentiable function leaves its mark only on gradients that carry a graph on arrival.
        gradients = gradient_graph(loss, leaves, start=torch.ones_like(loss, requires_grad=True))
        rows = [
            (gradient, vector, leaf)
            for gradient, vector, leaf in zip(gradients, vectors, leaves, strict=True)
            if gradient is not None and vector is not None
        ]
        refuse_cut_graph(gradient for gradient, _, _ in rows)
        used, along, inputs = zip(*rows, strict=True) if rows else ((), (), ())
        products = hessian_vector_products(used, along, inputs)
    value = torch.zeros((), dtype=torch.float64, device=loss.device)
    for vector, product in zip(along, products, strict=True):
        if product is not None:
            value += (vector.to(torch.float64) * product).sum()
    return float(value)

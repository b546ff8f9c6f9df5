"""The derivative of a model's output along a direction of its parameters, z' = J u.

It takes one forward-mode pass or, where an operation has no forward-mode derivative (fused attention, custom functions), two
outputs on both sides. Both put values in the places of the parameters, but a model may read its weights elsewhere: from a list
of its own, or from what a parametrization has cached. Its output then has a graph to the true parameter, and J u is taken
as the derivative of u . J' w in w instead, which needs no replacing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv import _validate
from metacurv.estimators.graph.differentiate import refuse_cut_graph
from metacurv.estimators.graph.walk import walk_graph
from metacurv.estimators.problem.errors import explain_differentiation_errors
from metacurv.estimators.problem.model_loss import ModelLoss, known_tensor
from metacurv.estimators.problem.numerics import relative_step, root_mean_square
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.problem.user_state import gradients_on, without_hooks


class _ReadElsewhere(Exception):
    """Raised where the model took a parameter from another place than its modules."""


def push_tangent(
    problem: ModelLoss,
    moving: Mapping[str, Tensor],
    method: str,
    step: float | None,
    *,
    of_logits: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns the output and its derivative along the direction.

    ``method`` is "forward_mode", "finite_difference" or "auto"; ``step`` is the step of the difference. With ``of_logits`` the
    output may be an object with logits, which are taken.
    """
    if of_logits:
        whole = problem
        problem = replace(problem, pick=lambda output: known_tensor(whole.picked(output)))
    with gradients_on():  # a graph in the output shows parameters that were not replaced
        try:
            if method != "finite_difference":
                try:
                    return _push_dual(problem, moving)
                except RuntimeError as error:
                    # An error that is not forward mode's fault occurs again below.
                    if method == "forward_mode":
                        if isinstance(error, NotImplementedError):
                            raise ValueError(
                                "method='forward_mode' needs operations that have forward mode, and this model has one that "
                                "has not, such as a torch.autograd.Function without jvp; use method='auto'"
                            ) from error
                        raise
            return _push_difference(problem, moving, step)
        except _ReadElsewhere as reason:
            if method != "auto":
                raise ValueError(
                    f"method={method!r} puts values in the places of parameters, but the model reads {reason} elsewhere "
                    "(an alias, or what a parametrization has cached); use method='auto'"
                ) from None
            return _push_double_backward(problem, moving)


def _push_dual(problem: ModelLoss, moving: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Pushes the tangent by dual numbers. torch.func.jvp would forbid batch norm to update its running statistics."""
    with forward_ad.dual_level():
        values = _values(problem)
        for name, u in moving.items():
            values[name] = forward_ad.make_dual(values[name], u)  # type: ignore[no-untyped-call]
        output = _output_with(problem, values)
        primal, tangent = forward_ad.unpack_dual(output)  # type: ignore[no-untyped-call]
        found = torch.zeros_like(primal) if tangent is None else tangent
        return primal.detach(), found.detach()


def _push_difference(
    problem: ModelLoss, moving: Mapping[str, Tensor], step: float | None
) -> tuple[Tensor, Tensor]:
    values = _values(problem)
    output = _output_with(problem, values).detach()
    if step is None:
        moved = [values[name] for name in moving]
        step = relative_step([output.dtype, *(x.dtype for x in moved)])
        step *= root_mean_square(moved) / root_mean_square(list(moving.values()))
    sides = []
    for h in (step, -step):
        shifted = {name: torch.add(values[name], u, alpha=h) for name, u in moving.items()}
        there = _output_with(problem, {**values, **shifted})
        sides.append(there.detach().to(torch.float64))
    return output, ((sides[0] - sides[1]) / (2 * step)).to(output.dtype)


def _push_double_backward(
    problem: ModelLoss, moving: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """Returns the output and z' = d (u . J' w) / dw, taken at w = 0, since J' w is linear in w."""
    with problem.state_kept(), without_hooks(problem.parameters):
        output = _one_tensor(problem.forward().output)
        w = torch.zeros_like(output, requires_grad=True)
        asked = [p for p in problem.parameters if p.name in moving]
        with explain_differentiation_errors("differentiating the model's backward pass"):
            tangent = push_through(pull_graph(output, asked, w), w, moving)
    return output.detach(), tangent


def pull_graph(
    output: Tensor | GradientEdge, parameters: Sequence[NumberedParameter], w: Tensor
) -> dict[str, Tensor]:
    """Returns J' w, as a function of w, of each parameter that the output depends on, by name."""
    tensors = [p.tensor for p in parameters]
    pulled = torch.autograd.grad(output, tensors, w, create_graph=True, allow_unused=True)
    pairs = zip(parameters, pulled, strict=True)
    live = {p.name: x for p, x in pairs if x is not None}
    refuse_cut_graph(live.values())
    return live


def push_through(pulled: Mapping[str, Tensor], w: Tensor, vectors: Mapping[str, Tensor]) -> Tensor:
    """Returns J v, as the derivative of v . J' w in w; ``pulled``: see ``pull_graph``, whose graph stays usable."""
    if not pulled:
        return torch.zeros_like(w, requires_grad=False)
    along = [vectors[name] for name in pulled]
    (tangent,) = torch.autograd.grad(
        list(pulled.values()), w, along, retain_graph=True, materialize_grads=True
    )
    return tangent


def _values(problem: ModelLoss) -> dict[str, Tensor]:
    """Returns the parameters by name, as constants: autocast's cache takes only tensors that require a gradient."""
    return {p.name: p.tensor.detach() for p in problem.parameters}


def _output_with(problem: ModelLoss, values: Mapping[str, Tensor]) -> Tensor:
    output = _one_tensor(problem.forward_with(values))
    if output.grad_fn is not None:
        leaves = walk_graph(output.grad_fn, problem.parameters).leaves
        if leaves:
            raise _ReadElsewhere(problem.parameters[min(leaves.values())].name)
    return output


def _one_tensor(output: Any) -> Tensor:
    if isinstance(output, Tensor) and _validate.is_real_tensor(output):
        return output
    got = f"a {output.dtype} one" if isinstance(output, Tensor) else _validate.describe(output)
    raise TypeError(f"kind='ggn' needs a model whose output is one dense real tensor, got {got}")

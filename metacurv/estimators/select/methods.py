"""The four ways to a model's trace in one form: whether each is right for a batch, and what it measures there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch
from torch.autograd.graph import Node

from metacurv import ops
from metacurv.estimators.graph.walk import nodes_below
from metacurv.estimators.probes.finite_difference import FiniteDifference
from metacurv.estimators.probes.samples import GaussNewtonSamples, HessianSamples
from metacurv.estimators.problem.errors import (
    NotTwiceDifferentiableError,
)
from metacurv.estimators.problem.loss_checks import refuse_reentrant_checkpoints, without_hooks
from metacurv.estimators.problem.user_state import plain_arithmetic, recording
from metacurv.estimators.select.exact import exact_parts
from metacurv.estimators.select.measured_batch import Opened
from metacurv.estimators.statistics.stopping import Budget, Draw, Groups, Summary, sample

# Bound on the difference between samples at a step and at twice that step: in float32 smooth networks are below 0.005, those
# with kinks at 0.1 or above (benchmarks/kinks.py).
_KINKS = 0.02
METHODS = ("exact", "activation", "hutchinson", "finite_difference")


def why_not(method: str, opened: Opened) -> str | None:
    """Returns the reason why ``method`` would be wrong here; None where it is right, as far as can be told before it runs."""
    if method in ("exact", "activation"):
        if opened.obstacle is not None:
            return opened.obstacle
        if method == "exact" and opened.kind == "hessian" and opened.bent_by:
            return (
                "columns give the Hessian only where a network is linear in pieces, or a plain stack of linear layers and "
                f"elementwise functions under softmax cross-entropy, and {', '.join(opened.bent_by)} is not"
            )
        return None
    if method == "hutchinson":
        if opened.kind == "ggn" and opened.forward.edge is None:
            return (
                "the Gauss-Newton matrix needs a model whose output is one tensor that the graph of the loss begins at; of "
                "another output, estimate_trace(..., output=lambda out: ...) picks the tensor for loss_fn"
            )
        return None
    return (
        None if opened.kind == "hessian" else f"it measures the Hessian only, not {opened.kind!r}"
    )


def measure(method: str, opened: Opened, groups: Groups, budget: Budget) -> Summary:
    """Runs a method for which ``why_not`` found nothing; returns all parameters' parts, the groups, and the total."""
    if opened.is_chain(method):  # runs none of the user's code but for hooks on smooth activations
        with plain_arithmetic(opened.problem.device), without_hooks(opened.problem.parameters):
            return _measure(method, opened, groups, budget)
    if method not in ("exact", "activation"):
        refuse_reentrant_checkpoints({node.name() for node in nodes_below([_root(opened)])})
    if (
        method == "finite_difference"
    ):  # it runs forward passes of its own, under the caller's autocast
        return sample(_finite_differences(opened).samples, groups, budget)
    try:
        with _quiet(opened):
            return _measure(method, opened, groups, budget)
    except NotTwiceDifferentiableError:
        if not opened.avoid_fused_attention():
            raise
    with _quiet(opened):
        return _measure(method, opened, groups, budget)


def kinks(opened: Opened) -> str | None:
    """Returns what finite differences see of kinks, where it is more than of a smooth loss; None where they may be taken.

    It takes 16 gradients.
    """
    disagreement = _finite_differences(opened).disagreement()
    if disagreement <= _KINKS:
        return None
    return (
        "finite differences see kinks (ReLU, max pooling), so they would give no second derivative of the smooth pieces: "
        "measure kind='ggn', which is the same for networks that are linear in pieces (samples at steps h and 2h differ by "
        f"{disagreement:.0%})"
    )


def _measure(method: str, opened: Opened, groups: Groups, budget: Budget) -> Summary:
    if method == "exact":
        space = opened.space(for_columns=True)
        sums = groups.row_with_sums(exact_parts(space, opened.forward.loss, opened.kind))
        return Summary(sums, [0.0] * len(sums), 0, converged=True)
    return sample(_SAMPLERS[method](opened), groups, budget)


def _root(opened: Opened) -> Node:
    root = opened.forward.loss.grad_fn
    assert root is not None  # check_loss saw to it
    return root


def _quiet(opened: Opened) -> AbstractContextManager[object]:
    """Switches autocast and the hooks of the user's parameters off: backward passes take the dtypes of the forward pass."""
    stack = ExitStack()
    device = opened.problem.device.type
    if torch.is_autocast_enabled(device):
        stack.enter_context(torch.autocast(device, enabled=False))
    stack.enter_context(recording())
    stack.enter_context(
        opened.problem.ways_around()
    )  # a checkpoint runs its part of the pass again
    stack.enter_context(torch.no_grad())
    stack.enter_context(without_hooks(opened.problem.parameters))
    stack.enter_context(opened.problem.state_kept())
    return stack


def _activation(opened: Opened) -> Draw:
    space = opened.space(for_columns=False)
    key = ops.as_int64(opened.seed)
    return lambda first, n: space.draw(key, first, n)


def _hutchinson(opened: Opened) -> Draw:
    of_kind = HessianSamples if opened.kind == "hessian" else GaussNewtonSamples
    with torch.enable_grad():
        return of_kind(
            opened.problem, opened.forward, seed=opened.seed, backend=opened.backend
        ).samples


def _finite_differences(opened: Opened) -> FiniteDifference:
    return FiniteDifference(opened.problem, seed=opened.seed, backend=opened.backend)


_SAMPLERS: dict[str, Callable[[Opened], Draw]] = {
    "activation": _activation,
    "hutchinson": _hutchinson,
}

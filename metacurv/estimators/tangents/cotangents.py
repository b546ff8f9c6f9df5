"""Gives the rules of a plan the cotangents at their operations, by one backward pass that checks that no hook changes one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from metacurv.estimators.problem.errors import NotApplicable
from metacurv.estimators.tangents.plan import Step


def prepare_rules(loss: Tensor, steps: Sequence[Step]) -> None:
    """Gives the rules dL/dy, from a backward pass that builds no graph and looks at what passes between nodes.

    Rules do not call hooks, so the cotangent that arrives at a step must be the very tensor that the node above sent. Only the
    foot of a chain is not run; its cotangent is what autograd captures for us, after hooks on that tensor.

    Raises:
        NotApplicable: a hook may change a cotangent.
    """
    sent: dict[int, Tensor | None] = {}
    arrived: dict[int, Tensor | None] = {}

    def note_sent(index: int, position: int) -> Any:
        def hook(gradients: Sequence[Tensor | None], _: Any) -> None:
            sent[index] = gradients[position]

        return hook

    def note_arrived(index: int) -> Any:
        def hook(gradients: Sequence[Tensor | None]) -> None:
            arrived[index] = gradients[0]

        return hook

    handles: list[Any] = []
    try:
        for index, step in enumerate(steps):
            handles.append(step.node.register_prehook(note_arrived(index)))
            foreign = (
                len(handles[-1].hooks_dict_ref()) > 1
            )  # the user has a hook on the node itself
            if step.upper is not None:
                upper, position = step.upper
                handles.append(upper.register_hook(note_sent(index, position)))
                foreign |= not step.is_last and len(handles[-1].hooks_dict_ref()) > 1
            if foreign:
                raise NotApplicable
        wanting = [step for step in steps if step.rule.wants_cotangent or step.below is None]
        cotangents = torch.autograd.grad(
            loss, [step.edge for step in wanting], retain_graph=True, allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()
    captured = {id(step): cotangent for step, cotangent in zip(wanting, cotangents, strict=True)}
    for index, step in enumerate(steps):
        here = arrived.get(index, captured.get(id(step)))
        if here is None or (step.upper is not None and here is not sent[index]):
            raise NotApplicable
        if step.rule.wants_cotangent:
            step.rule.prepare(here)

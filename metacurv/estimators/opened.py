"""One batch opened for measuring: its forward pass, and what each method can do with it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from metacurv import ops
from metacurv.estimators.activation_plan import NotInActivationSpace
from metacurv.estimators.activation_space import ActivationSpace
from metacurv.estimators.examine import Examined, examine
from metacurv.estimators.graph_walk import Walk
from metacurv.estimators.loss_checks import check_loss, without_hooks
from metacurv.estimators.model_loss import Forward, ModelLoss

Kind = Literal["hessian", "ggn"]


@dataclass
class Opened:
    """Forward passes and what was found out are kept, so that looking at several methods costs one of each."""

    problem: ModelLoss
    kind: Kind
    seed: int
    backend: str
    max_memory: int

    @cached_property
    def forward(self) -> Forward:
        """One forward pass, with a loss that can be measured."""
        forward = self.problem.forward()
        check_loss(forward.loss)
        return forward

    @cached_property
    def samples(self) -> int:
        """Samples in the batch: the length of the first tensor of the inputs."""
        return batch_size(self.problem.inputs)

    @cached_property
    def _activation_space(self) -> tuple[Walk, Examined] | NotInActivationSpace:
        with without_hooks(self.problem.parameters):
            try:
                return examine(
                    self.forward.loss,
                    self.problem.parameters,
                    self.forward.edge,
                    self.samples,
                    self.kind,
                )
            except NotInActivationSpace as reason:
                return reason.with_traceback(None)  # which holds the graph

    @property
    def obstacle(self) -> str | None:
        """Why activation space does not serve for this kind of matrix, if so."""
        found = self._activation_space
        if isinstance(found, NotInActivationSpace):
            return str(found)
        return found[1].plan.obstacle if self.kind == "hessian" else None

    @property
    def examined(self) -> Examined:
        """Only where there is no obstacle."""
        found = self._activation_space
        assert not isinstance(found, NotInActivationSpace)
        return found[1]

    @property
    def bent_by(self) -> list[str]:
        """Names of the smooth activations."""
        names = (self.walk.names[node] for node in self.examined.plan.smooth)
        names = (name.removesuffix("Backward0") for name in names)
        return sorted(set(names))

    @property
    def walk(self) -> Walk:
        """Only where there is no obstacle."""
        found = self._activation_space
        assert not isinstance(found, NotInActivationSpace)
        return found[0]

    def space(self, *, for_columns: bool) -> ActivationSpace:
        """The batch in activation space; ``for_columns``: with as many samples as may share a column."""
        return ActivationSpace(
            self.forward.loss,
            self.walk,
            self.examined,
            self.problem.parameters,
            self.examined.apart if for_columns else 1,
            self.kind,
            ops.implementation(self.backend, self.problem.device),
            self.max_memory,
        )


def batch_size(inputs: Any) -> int:
    """The length of the first tensor in ``inputs`` that has one; 1 where there is none."""
    if not isinstance(inputs, Tensor):
        leaves = pytree.tree_leaves(inputs)
        tensors = (leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dim())
        inputs = next(tensors, None)
    return len(inputs) if inputs is not None and inputs.dim() else 1

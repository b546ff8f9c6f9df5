"""One batch that is measured: its forward pass, and what was found out about it for the methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.activation.examine import Examined, examine
from metacurv.estimators.activation.plan import NotInActivationSpace
from metacurv.estimators.activation.space import ActivationSpace
from metacurv.estimators.graph.custom_functions import names_of
from metacurv.estimators.graph.node_kinds import COMPILED, is_fused_attention
from metacurv.estimators.graph.torch_private import leaf_of
from metacurv.estimators.graph.walk import Walk, nodes_below
from metacurv.estimators.mlp.recognise import Chain, find_chain
from metacurv.estimators.mlp.second_derivatives import bend_columns
from metacurv.estimators.mlp.space import ChainSpace
from metacurv.estimators.problem.batches import batch_size
from metacurv.estimators.problem.errors import NotTwiceDifferentiableError, without_advice
from metacurv.estimators.problem.model_loss import Forward, ModelLoss, check_loss
from metacurv.estimators.problem.user_state import plain_arithmetic, without_hooks
from metacurv.estimators.split.products import SplitProducts

T = TypeVar("T")


@dataclass
class MeasuredBatch:
    """One batch with its forward pass and the findings about it, kept so that looking at several methods costs one of each."""

    problem: ModelLoss
    kind: Literal["hessian", "ggn"]
    seed: int
    backend: str
    max_memory: int
    _whole_chain: Chain | None = dataclasses.field(default=None, init=False)

    @cached_property
    def forward(self) -> Forward:
        """A forward pass, with a loss that can be measured."""
        forward = self._checked_forward()
        is_known = self.problem.eager or self._whole_chain is not None
        if is_known or not any(name.startswith(COMPILED) for name in _names(forward.loss)):
            return forward
        # Compiled code is one node of the graph, with nothing to see inside and no second derivative.
        self.problem = dataclasses.replace(self.problem, eager=True)
        return self._checked_forward()

    def _checked_forward(self) -> Forward:
        forward = self.problem.forward()
        check_loss(forward.loss)
        if forward.tensor is not forward.output and self._goes_around(forward):
            forward = dataclasses.replace(forward, edge=None)
        self._whole_chain = find_chain(forward.loss, self.problem.parameters)
        return forward

    def _goes_around(self, forward: Forward) -> bool:
        """Tells whether the loss depends on a parameter otherwise than through the edge, as on other parts of an output."""
        if forward.edge is None or forward.loss.grad_fn is None:
            return False
        ours = {id(p.tensor) for p in self.problem.parameters}
        around = nodes_below([forward.loss.grad_fn], without=forward.edge.node)
        return any(id(leaf_of(node)) in ours for node in around)

    @property
    def node_names(self) -> set[str]:
        """The names of the nodes in the loss's graph."""
        return _names(self.forward.loss)

    def quietly(self, measure: Callable[[], T], *, without_user_code: bool = False) -> T:
        """Returns ``measure()``, which runs backward passes, in the dtypes of the forward pass and without the user's hooks.

        Where fused attention has no second derivative, it runs once more around that. ``without_user_code``: True where it runs
        nothing of the user's but hooks on smooth activations.
        """
        with plain_arithmetic(self.problem.device), without_hooks(self.problem.parameters):
            if without_user_code:
                return measure()
            try:
                return self._measured(measure)
            except NotTwiceDifferentiableError:
                is_fused = any(map(is_fused_attention, self.node_names))
                if self.problem.math_attention or not is_fused:
                    raise
            self.problem = dataclasses.replace(self.problem, math_attention=True)
            for name in ("forward", "chain", "_activation_space"):
                self.__dict__.pop(name, None)
            return self._measured(measure)

    def _measured(self, measure: Callable[[], T]) -> T:
        # A checkpoint runs its part of the pass again.
        with self.problem.ways_around(), torch.no_grad(), self.problem.state_kept():
            return measure()

    @property
    def custom_functions(self) -> str:
        """The names of the custom functions in the graph, with commas."""
        assert self.forward.loss.grad_fn is not None  # check_loss saw to it
        return ", ".join(names_of(nodes_below([self.forward.loss.grad_fn])))

    @cached_property
    def chain(self) -> Chain | None:
        """The forward pass as a chain of layers, if it is one; for the Gauss-Newton matrix it must end with the logits."""
        forward, chain = self.forward, self._whole_chain
        if chain is not None and self.kind == "ggn" and not chain.begins_at(forward.edge):
            return None
        return chain

    @cached_property
    def _activation_space(self) -> tuple[Walk, Examined] | str:
        """The walk and what was found out about the graph, or the reason why activation space does not serve."""
        # Under a checkpoint a look at what was saved runs the forward pass again.
        with without_hooks(self.problem.parameters), self.problem.state_kept():
            try:
                return examine(
                    self.forward.loss,
                    self.problem.parameters,
                    self.forward.edge,
                    batch_size(self.problem.inputs),
                    self.kind,
                    self.problem.again,
                )
            except NotInActivationSpace as reason:
                return str(reason)
            except NotTwiceDifferentiableError as error:
                return without_advice(error)

    @property
    def unknown(self) -> str | None:
        """The reason why layers and output cannot be told from the graph; None where they can."""
        if self.chain is not None:
            return None
        found = self._activation_space
        return found if isinstance(found, str) else None

    @property
    def obstacle(self) -> str | None:
        """The reason why activation space does not serve for this kind of matrix; None where it does."""
        if self.chain is not None:
            return None
        found = self._activation_space
        if isinstance(found, str):
            return found
        return found[1].plan.obstacle if self.kind == "hessian" else None

    @property
    def _walk_and_examined(self) -> tuple[Walk, Examined]:
        """The walk and what was found out about the graph; defined only where there is no obstacle."""
        found = self._activation_space
        assert not isinstance(found, str)
        return found

    @property
    def columns(self) -> tuple[int, int]:
        """The numbers of columns of the exact trace, defined only where there is no obstacle.

        Each column takes a backward pass to the layers. The first number counts those of the loss's factor, the second those of
        smooth activations.
        """
        if self.chain is None:
            return self._walk_and_examined[1].columns, 0
        is_bent = self.kind == "hessian" and self.chain.has_smooth
        return self.chain.columns, bend_columns(self.chain) if is_bent else 0

    @property
    def all_columns(self) -> int:
        """The number of columns of the loss's factor, counted for each example; defined only where there is no obstacle."""
        _, examined = self._walk_and_examined
        return examined.columns * examined.apart

    @property
    def apart(self) -> int:
        """The number of examples that share a column; defined only where there is no obstacle."""
        return self._walk_and_examined[1].apart

    @property
    def formed_elements(self) -> int:
        """The number of elements of parameters whose gradients by example have to be formed."""
        _, examined = self._walk_and_examined
        formed = (plan.parameters for plan in examined.part_plans if plan.layer is None)
        return sum(self.problem.parameters[i].tensor.numel() for some in formed for i in some)

    @property
    def column_bytes(self) -> int:
        """The bytes of all columns' cotangents, at the output and at the layers."""
        _, examined = self._walk_and_examined
        return examined.columns * examined.elements * self.forward.loss.element_size()

    @property
    def bent_by(self) -> list[str]:
        """The names of the smooth activations that keep columns from giving the Hessian."""
        if self.chain is not None:
            return []
        walk, examined = self._walk_and_examined
        names = (walk.names[node] for node in examined.plan.smooth)
        return sorted({name.removesuffix("Backward0") for name in names})

    def is_chain(self, *, for_columns: bool) -> bool:
        """Tells whether the forward pass may be taken as a chain; signs at smooth activations are drawn in the general form."""
        if self.chain is None:
            return False
        return for_columns or self.kind == "ggn" or not self.chain.has_smooth

    def space(self, *, for_columns: bool) -> ActivationSpace | ChainSpace:
        """Returns the batch in activation space; ``for_columns``: with as many examples as may share a column."""
        if self.chain is not None and self.is_chain(for_columns=for_columns):
            run = ops.implementation(self.backend, self.problem.device)
            return ChainSpace(self.chain, self.problem.parameters, run, self.max_memory)
        return self.general_space(for_columns=for_columns)

    def split_products(self) -> SplitProducts:
        """Returns double backward passes with a direction for each example; defined only where layers are known."""
        run = ops.implementation(self.backend, self.problem.device)
        walk, examined = self._walk_and_examined
        return SplitProducts(self.forward.loss, walk, examined, self.problem.parameters, run)

    def general_space(
        self, *, for_columns: bool, kind: Literal["hessian", "ggn"] | None = None
    ) -> ActivationSpace:
        """Returns the batch in the activation space of any graph, also where it is a chain; ``kind``: another matrix's."""
        run = ops.implementation(self.backend, self.problem.device)
        walk, examined = self._walk_and_examined
        loss, apart = self.forward.loss, examined.apart if for_columns else 1
        return ActivationSpace(
            loss,
            walk,
            examined,
            self.problem.parameters,
            apart,
            kind or self.kind,
            run,
            self.max_memory,
        )


def _names(loss: Tensor) -> set[str]:
    assert loss.grad_fn is not None  # check_loss saw to it
    return {node.name() for node in nodes_below([loss.grad_fn])}

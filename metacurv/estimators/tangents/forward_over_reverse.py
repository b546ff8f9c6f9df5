"""The same samples v . (H v) by a derivative along v of the gradient's computation, for stacks of known layers.

Where ``plan_tangents`` finds a rule for every operation that a parameter goes through, a probe needs no backward pass through a
gradient's graph: its tangent is pushed from the parameters up to the loss function and pulled back down. Autograd
differentiates twice the loss function itself, or what else stands in the head. Samples are those of ``double_backward``, probe
by probe and parameter by parameter, up to rounding; a layer costs four matrix products instead of six, the first one instead of
three, and the autograd engine is not asked about layers.

Memory, whatever the number of probes: for each layer its tangent input and dL/dz, for each activation its slope; no gradient's
graph, and no H v.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from metacurv.estimators.graph.differentiate import gradient_graph, hessian_vector_products
from metacurv.estimators.problem.errors import NotApplicable, explain_differentiation_errors
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.tangents.plan import Step
from metacurv.estimators.tangents.rules import NOTHING, Flow, Layer, dot
from metacurv.ops._reference import OpSet


class ForwardOverReverse:
    """Samples v . (H v) of every parameter by one push and one pull a probe.

    Args:
        loss: one element.
        parameters: all parameters to be measured.
        steps: a plan that covers every use of every parameter.
        start: see ``gradient_graph``.

    Raises:
        NotApplicable: a hook may change gradients where only autograd would call it, or the head cuts a gradient off.
    """

    def __init__(
        self,
        loss: Tensor,
        parameters: Sequence[NumberedParameter],
        steps: Sequence[Step],
        *,
        start: Tensor | None,
    ) -> None:
        self.parameters = list(parameters)
        self._steps = steps
        # Only a head with a second derivative has to be differentiated twice.
        self._curved_heads = [
            i for i, step in enumerate(steps) if step.is_last and not step.is_below_linear_loss
        ]
        self._edges = [steps[i].edge for i in self._curved_heads]
        self.gradients = gradient_graph(loss, self._edges, start=start) if self._edges else []
        with explain_differentiation_errors("the gradient of loss"):
            _prepare_rules(loss, steps)
        self._layers = [step.rule for step in steps if isinstance(step.rule, Layer)]
        measured = {n for layer in self._layers for n in (layer.weight, layer.bias)}
        self.probed = [p for p in parameters if p.number in measured]
        self.curved: list[NumberedParameter] = []
        self._sums: tuple[tuple[float, ...], ...] = ()

    def terms(self, vectors: Sequence[Tensor], run: OpSet, key: int, probe: Tensor) -> list[Tensor]:
        """Returns the scalar products (0-dim) of one probe; ``vectors``: its tensors, one for each of ``probed``."""
        of = {p.number: v for p, v in zip(self.probed, vectors, strict=True)}
        # A few per cent faster than no_grad: there are many small operations.
        with torch.inference_mode():
            tangent, last = vectors[0], {}  # the foot of a chain looks at no tangent
            for i, step in enumerate(self._steps):
                tangent = step.rule.push(tangent, of)
                if step.is_last:
                    last[i] = tangent
            heads = self._through_heads(last)
            flow = NOTHING
            for i in range(len(self._steps) - 1, -1, -1):  # a chain's steps follow each other
                step = self._steps[i]
                flow = step.rule.pull(heads.get(i, NOTHING) if step.is_last else flow, of)
        products = [x for layer in self._layers for x in layer.products]
        if not self.curved:
            self._add_up([x is not None for x in products])
        return [x for x in products if x is not None]

    def _through_heads(self, tangents: dict[int, Tensor]) -> dict[int, Flow]:
        """Returns what comes back from the heads, their own second derivatives times t(y), by step."""
        if not self._edges:
            return {}
        live = [
            (gradient, i)
            for gradient, i in zip(self.gradients, self._curved_heads, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        # The head is the user's: it may recompute activations, and its hooks may keep what they see.
        with torch.inference_mode(False), torch.no_grad():
            vectors = [tangents[i].clone() for _, i in live]
            products = hessian_vector_products([g for g, _ in live], vectors, self._edges)
        pairs = zip(self._curved_heads, products, strict=True)
        return {i: Flow(h, dot(h, tangents[i])) for i, h in pairs if h is not None}

    def _add_up(self, exists: list[bool]) -> None:
        """Finds which products add up to whose sample: the graph alone decides which exist, so the first probe's serve all."""
        shares = [row for layer in self._layers for row in layer.shares]
        rows = [row for row, is_there in zip(shares, exists, strict=True) if is_there]
        # The samples of all other parameters are exactly 0.
        self.curved = [p for p in self.probed if any(p.number in row for row in rows)]
        self._sums = tuple(tuple(row.get(p.number, 0.0) for p in self.curved) for row in rows)

    def samples(self, terms: list[Tensor], count: int) -> Tensor:
        """Returns float64 [count, curved]: the samples of as many probes, from all their terms."""
        if not terms:
            return torch.zeros(count, 0, dtype=torch.float64, device=self.probed[0].tensor.device)
        table = _kept_table(self._sums, terms[0].device)
        return torch.stack(terms).view(count, -1).to(torch.float64) @ table


@lru_cache(maxsize=64)
def _kept_table(rows: tuple[tuple[float, ...], ...], device: torch.device) -> Tensor:
    """Returns ``rows`` as float64, not to be changed: equal numbers share memory, so that a GPU is not waited for again."""
    with torch.inference_mode(False):  # it outlives the caller's mode
        return torch.tensor(rows, dtype=torch.float64, device=device)


def _prepare_rules(loss: Tensor, steps: Sequence[Step]) -> None:
    """Gives the rules dL/dy, from a backward pass that builds no graph and looks at what passes between nodes.

    Rules do not call hooks, so the cotangent that arrives at a step must be the very tensor that the node above sent. Only the
    foot of a chain is not run; its cotangent is what autograd captures for us, after hooks on that tensor.

    Raises:
        NotApplicable: a hook may change a cotangent.
    """
    sent: dict[int, Tensor | None] = {}
    arrived: dict[int, Tensor | None] = {}

    def note(
        into: dict[int, Tensor | None], index: int, position: int, gradients: Any, *_: Any
    ) -> None:
        into[index] = gradients[position]

    handles: list[Any] = []
    try:
        for index, step in enumerate(steps):
            handles.append(step.node.register_prehook(partial(note, arrived, index, 0)))
            is_foreign = len(handles[-1].hooks_dict_ref()) > 1  # the user has a hook on the node
            if step.upper is not None:
                upper, position = step.upper
                handles.append(upper.register_hook(partial(note, sent, index, position)))
                is_foreign |= not step.is_last and len(handles[-1].hooks_dict_ref()) > 1
            if is_foreign:
                raise NotApplicable
        wanting = [i for i, step in enumerate(steps) if step.rule.wants_cotangent or step.is_foot]
        edges = [steps[i].edge for i in wanting]
        cotangents = torch.autograd.grad(loss, edges, retain_graph=True, allow_unused=True)
    finally:
        for handle in handles:
            handle.remove()
    captured = dict(zip(wanting, cotangents, strict=True))
    for index, step in enumerate(steps):
        here = arrived.get(index, captured.get(index))
        if here is None or (step.upper is not None and here is not sent[index]):
            raise NotApplicable
        if step.rule.wants_cotangent:
            step.rule.prepare(here)

"""The same samples v . (H v) by a derivative along v of the gradient's computation, for stacks of known layers.

Where ``tangent_plan`` finds a rule for every operation that a parameter goes through, a probe needs no backward pass through a
gradient's graph: its tangent is pushed from the parameters up to the loss function and pulled back down. The loss function
itself, or what else stands in the head, is differentiated twice by autograd. Samples are those of ``double_backward``, probe by
probe and parameter by parameter, up to rounding; a layer costs four matrix products instead of six, the first one instead of
three, and the autograd engine is not asked about layers.

Memory, whatever the number of probes: for each layer its tangent input and dL/dz; no gradient's graph, and no H v.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from metacurv.estimators.double_backward import gradient_graph, hessian_vector_products
from metacurv.estimators.errors import explain_differentiation_errors
from metacurv.estimators.moments import CombinedMoments
from metacurv.estimators.parameters import NumberedParameter
from metacurv.estimators.probe_products import Probe, dot
from metacurv.estimators.tangent_plan import Step
from metacurv.estimators.tangent_rules import NOTHING, Flow, Layer, Ledger


class ForwardOverReverse:
    """v . (H v) of every parameter by one push and one pull a probe.

    Args:
        loss: one element.
        parameters: all that are asked for.
        steps: a plan that covers every use of every parameter.
        start: see ``gradient_graph``.

    Raises:
        GradientHookError: a hook changes gradients between two steps, where only autograd would call it.
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
        self._boundary = [index for index, step in enumerate(steps) if step.is_last]
        # Only a head with a second derivative has to be differentiated twice.
        self._curved_heads = [i for i in self._boundary if not steps[i].is_below_linear_loss]
        self.gradients: list[Tensor | None] = []
        if self._curved_heads:
            edges = [steps[i].edge for i in self._curved_heads]
            self.gradients = gradient_graph(loss, edges, start=start)
        with explain_differentiation_errors("the gradient of loss"):
            _prepare(loss, steps)
        layers = [step.rule for step in steps if isinstance(step.rule, Layer)]
        weights = {layer.use.weight.number: layer.stored for layer in layers}
        biases = {layer.use.bias.number for layer in layers if layer.use.bias is not None}
        curved = [p for p in parameters if p.number in weights or p.number in biases]
        self.probed = [p for p in curved if p.number in biases or weights[p.number]]
        self._ledger = Ledger()
        self.moments = CombinedMoments(curved, parameters[0].tensor.device)

    @torch.inference_mode()  # a few per cent faster than no_grad: there are many small operations
    def accumulate(
        self, vectors: Sequence[Tensor], run: ModuleType, key: int, index: Tensor
    ) -> None:
        """Adds one sample; vectors: the probe, one tensor for each of ``probed``."""
        stored = {p.number: v for p, v in zip(self.probed, vectors, strict=True)}
        probe = Probe(stored, run, key, index)
        ledger = self._ledger
        flows = self._through_head(self._push(probe), ledger)
        flow = NOTHING
        for i in range(len(self._steps) - 1, -1, -1):  # a chain's steps follow each other
            step = self._steps[i]
            flow = step.rule.pull(flows[i] if step.is_last else flow, probe, ledger)
        self._add(ledger.products)
        ledger.close()

    def _push(self, probe: Probe) -> dict[int, Tensor]:
        """t(y) of each step in the boundary."""
        last: dict[int, Tensor] = {}
        tangent: Tensor | None = None
        for i, step in enumerate(self._steps):
            tangent = step.rule.push(None if step.below is None else tangent, probe)
            if step.is_last:
                last[i] = tangent
        return last

    def _through_head(self, tangents: dict[int, Tensor], ledger: Ledger) -> dict[int, Flow]:
        """What comes back from the head, its own second derivative times t(y), by step."""
        flows = dict.fromkeys(self._boundary, NOTHING)
        live = [
            (gradient, tangents[i])
            for gradient, i in zip(self.gradients, self._curved_heads, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        edges = [self._steps[i].edge for i in self._curved_heads]
        products = hessian_vector_products([g for g, _ in live], [t for _, t in live], edges)
        for i, product in zip(self._curved_heads, products, strict=True):
            if product is not None:
                flows[i] = Flow(product, ledger.note(dot(product, tangents[i])))
        return flows

    def _add(self, products: list[Tensor]) -> None:
        """Which products exist depends on the graph only, so the first probe decides what serves all."""
        if not products:  # no curvature at all
            self.moments.curved.clear()
            return
        if self.moments.table is None:
            rows = [self._ledger.samples.get(p.number, {}) for p in self.moments.curved]
            self.moments.table = torch.tensor(
                [[row.get(i, 0.0) for i in range(len(products))] for row in rows],
                dtype=torch.float64,
                device=products[0].device,
            )
        self.moments.add_terms(products)


class GradientHookError(Exception):
    """A hook on an activation changes its gradient."""


def _prepare(loss: Tensor, steps: Sequence[Step]) -> None:
    """Gives the rules dL/dy, from a backward pass that builds no graph and looks at what passes between steps."""
    emitted: dict[int, Tensor | None] = {}
    arrived: dict[int, Tensor | None] = {}

    def note_emitted(index: int, position: int) -> Any:
        def hook(gradients: Sequence[Tensor | None], _: Any) -> None:
            emitted[index] = gradients[position]

        return hook

    def note_arrived(index: int) -> Any:
        def hook(gradients: Sequence[Tensor | None]) -> None:
            arrived[index] = gradients[0]

        return hook

    handles = []
    for step in steps:
        if step.below is not None:
            handles.append(step.node.register_hook(note_emitted(step.below, step.position)))
            handles.append(steps[step.below].node.register_prehook(note_arrived(step.below)))
    wanting = [step for step in steps if step.rule.wants_cotangent or step.below is None]
    try:
        cotangents = torch.autograd.grad(
            loss, [step.edge for step in wanting], retain_graph=True, allow_unused=True
        )
    finally:
        for handle in handles:
            handle.remove()
    # Autograd hands on the very tensor unless a hook puts another in its place.
    if any(arrived[index] is not emitted[index] for index in arrived):
        raise GradientHookError
    for step, cotangent in zip(wanting, cotangents, strict=True):
        if step.rule.wants_cotangent:
            assert cotangent is not None
            step.rule.prepare(cotangent)

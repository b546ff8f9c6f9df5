"""The same samples v . (H v) by a derivative along v of the gradient's computation, for stacks of known layers.

Where ``tangent_plan`` finds a rule for every operation that a parameter goes through, a probe needs no backward pass through a
gradient's graph: its tangent is pushed from the parameters up to the loss function and pulled back down. Autograd
differentiates twice the loss function itself, or what else stands in the head. Samples are those of ``double_backward``, probe
by probe and parameter by parameter, up to rounding; a layer costs four matrix products instead of six, the first one instead of
three, and the autograd engine is not asked about layers.

Memory, whatever the number of probes: for each layer its tangent input and dL/dz, for each activation its slope; no gradient's
graph, and no H v.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from metacurv.estimators.graph.differentiate import gradient_graph, hessian_vector_products
from metacurv.estimators.problem.errors import explain_differentiation_errors
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.estimators.statistics.moments import CombinedMoments, kept_table
from metacurv.estimators.tangents.cotangents import prepare_rules
from metacurv.estimators.tangents.plan import Step
from metacurv.estimators.tangents.rules import NOTHING, Flow, Layer, Ledger, Probe, dot
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
        self._boundary = [index for index, step in enumerate(steps) if step.is_last]
        # Only a head with a second derivative has to be differentiated twice.
        self._curved_heads = [i for i in self._boundary if not steps[i].is_below_linear_loss]
        self.gradients: list[Tensor | None] = []
        if self._curved_heads:
            edges = [steps[i].edge for i in self._curved_heads]
            self.gradients = gradient_graph(loss, edges, start=start)
        with explain_differentiation_errors("the gradient of loss"):
            prepare_rules(loss, steps)
        layers = [step.rule for step in steps if isinstance(step.rule, Layer)]
        measured = {number for layer in layers for number in (layer.weight, layer.bias)}
        self.probed = [p for p in parameters if p.number in measured]
        self._ledger = Ledger()
        self.moments = CombinedMoments(self.probed, parameters[0].tensor.device, None)

    def accumulate(self, vectors: Sequence[Tensor], run: OpSet, key: int, index: Tensor) -> None:
        """Adds one sample; ``vectors`` is the probe, one tensor for each of ``probed``."""
        probe = {p.number: v for p, v in zip(self.probed, vectors, strict=True)}
        # A few per cent faster than no_grad: there are many small operations.
        with torch.inference_mode():
            flows = self._through_head(self._push(probe))
            flow = NOTHING
            for i in range(len(self._steps) - 1, -1, -1):  # a chain's steps follow each other
                step = self._steps[i]
                flow = step.rule.pull(flows[i] if step.is_last else flow, probe, self._ledger)
        self._add(self._ledger.products)
        self._ledger.close()

    def _push(self, probe: Probe) -> dict[int, Tensor]:
        """Returns the tangent t(y) of each step in the boundary."""
        last: dict[int, Tensor] = {}
        tangent: Tensor | None = None
        for i, step in enumerate(self._steps):
            tangent = step.rule.push(None if step.below is None else tangent, probe)
            if step.is_last:
                last[i] = tangent
        return last

    def _through_head(self, tangents: dict[int, Tensor]) -> dict[int, Flow]:
        """Returns the flow that comes back from the head, its own second derivative times t(y), by step."""
        flows = dict.fromkeys(self._boundary, NOTHING)
        live = [
            (gradient, i)
            for gradient, i in zip(self.gradients, self._curved_heads, strict=True)
            if gradient is not None and gradient.requires_grad
        ]
        if not live:
            return flows
        edges = [self._steps[i].edge for i in self._curved_heads]
        # The head is the user's: it may recompute activations, and its hooks may keep what they see.
        with torch.inference_mode(False), torch.no_grad():
            vectors = [tangents[i].clone() for _, i in live]
            products = hessian_vector_products([g for g, _ in live], vectors, edges)
        for i, product in zip(self._curved_heads, products, strict=True):
            if product is not None:
                flows[i] = Flow(product, self._ledger.note(dot(product, tangents[i])))
        return flows

    def _add(self, products: list[Tensor]) -> None:
        """Adds the products of one probe. The graph alone decides which exist, so the first probe's table serves all."""
        if self.moments.table is None:
            rows = {
                p: [
                    self._ledger.samples.get(p.number, {}).get(i, 0.0) for i in range(len(products))
                ]
                for p in self.moments.curved
            }
            curved = [p for p, row in rows.items() if any(row)]  # the others' samples are exactly 0
            device = self.parameters[0].tensor.device
            table = kept_table([rows[p] for p in curved], len(products), device)
            self.moments = CombinedMoments(curved, device, table)
        if products:
            self.moments.add_terms(products)

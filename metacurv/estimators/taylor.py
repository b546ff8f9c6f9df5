"""The samples v . (H v) of K probes at once by second-order forward mode, for stacks of known layers.

Where ``ForwardOverReverse`` pushes a probe up and pulls its curvature back down, here first derivatives of all probes go up
together, and curvature is read off on the way by the one gradient that all probes share (``taylor_rules``). A layer costs three
matrix products a probe instead of four (the first one, as there), and K probes take the calls of one. Only totals come out: no
term belongs to one parameter.

Memory: the signs of a chunk of probes, K copies of the parameters, and two tangents of the largest activation each.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv import ops
from metacurv.estimators.cotangent_capture import prepare_rules
from metacurv.estimators.double_backward import gradient_graph, hessian_vector_products
from metacurv.estimators.errors import NotApplicable, explain_differentiation_errors
from metacurv.estimators.parameters import NumberedParameter
from metacurv.estimators.probe_products import dot
from metacurv.estimators.tangent_plan import Step
from metacurv.estimators.tangent_rules import Layer
from metacurv.estimators.taylor_probes import Probes
from metacurv.estimators.taylor_rules import TaylorRule, taylor_rule


@dataclass(frozen=True)
class Pass:
    """One operation on the way up.

    ``is_foot``: True at the foot of a chain, where nothing arrives yet. ``is_under_head``: True where its tangents go to a head
    with a second derivative.
    """

    rule: TaylorRule
    is_foot: bool
    is_under_head: bool


class Taylor:
    """Draws samples v . (H v), all parameters together.

    ``taylor_of_steps`` makes it, or ``taylor_of_chain`` for a chain of layers.

    Args:
        passes: the operations from the parameters up, chain by chain.
        probed: parameters that the operations hold, of one dtype.
        device: the device of the samples.
        largest: elements of the largest tangent of one probe.
        backend: the backend that draws the probes, see ``metacurv.ops``.
        edges: the edges of the inputs of heads with a second derivative.
        gradients: the gradients in these inputs that carry a graph.
    """

    # The number of probes taken at once: more are no faster.
    chunk = 16
    # A bound on the elements of their signs and tangents: larger products gain nothing from chunks.
    chunk_elements = 1 << 24

    def __init__(
        self,
        passes: Sequence[Pass],
        probed: Sequence[NumberedParameter],
        device: torch.device,
        largest: int,
        backend: str,
        edges: Sequence[GradientEdge] = (),
        gradients: Sequence[Tensor | None] = (),
    ) -> None:
        self._passes = passes
        self.probed = list(probed)
        self._device = device
        self._largest = largest
        self._edges = edges
        self.gradients = gradients
        self._run: ModuleType = ops.implementation(backend, device)

    def samples(self, *, seed: int, first_probe: int, n_samples: int) -> Tensor:
        """Returns v_k . (H v_k) of probes ``first_probe`` ... ``first_probe + n_samples - 1``: float64 [n_samples]."""
        key = ops.as_int64(seed)
        per_probe = sum(p.tensor.numel() for p in self.probed) + 2 * self._largest
        most = max(1, min(self.chunk, self.chunk_elements // max(1, per_probe)))
        parts = []
        probes: Probes | None = None
        for start in range(0, n_samples, most):
            k = min(most, n_samples - start)
            if probes is None or k < most:
                probes = None  # frees the old room before the new is made
                probes = Probes(self.probed, largest=self._largest, k=k)
            probes.draw(self._run, key, first_probe + start)
            parts.append(self._push(probes, k))
        return torch.cat(parts)

    def _push(self, probes: Probes, k: int) -> Tensor:
        """Returns the samples of one chunk of probes, float64 [k]."""
        terms: list[Tensor] = []
        heads: list[Tensor] = []  # tangents of the inputs of curved heads
        tangents: Tensor | None = None
        # A few per cent faster than no_grad: there are many small operations.
        with torch.inference_mode():
            for each in self._passes:
                # A chain's operations follow each other.
                tangents = each.rule.push(None if each.is_foot else tangents, probes, terms)
                if each.is_under_head:
                    heads.append(tangents.clone())  # another chain may need the room
        samples = self._through_heads(heads, k)
        return samples.add_(torch.stack(terms).sum(0, dtype=torch.float64)) if terms else samples

    def _through_heads(self, tangents: Sequence[Tensor], n_probes: int) -> Tensor:
        """Returns t_k . (H_head t_k): float64 [K]; tangents: of the inputs y of curved heads, [K, *y.shape] each."""
        samples = torch.zeros(n_probes, dtype=torch.float64, device=self._device)
        live = [
            (gradient, i)
            for i, gradient in enumerate(self.gradients)
            if gradient is not None and gradient.requires_grad
        ]
        if not live:
            return samples
        gradients = [gradient for gradient, _ in live]
        # The head is the user's: it may recompute activations, and its hooks may keep what they see.
        with torch.no_grad():
            for k in range(n_probes):
                ts = [t[k].clone() for t in tangents]
                products = hessian_vector_products(gradients, [ts[i] for _, i in live], self._edges)
                for product, t in zip(products, ts, strict=True):
                    if product is not None:
                        samples[k] += dot(product, t)
        return samples


def taylor_of_steps(
    loss: Tensor,
    parameters: Sequence[NumberedParameter],
    steps: Sequence[Step],
    *,
    start: Tensor | None,
    backend: str,
) -> Taylor:
    """Makes a ``Taylor`` for any plan that covers every use of every parameter.

    Args:
        loss: one element.
        parameters: all parameters to be measured.
        steps: the plan; its rules are prepared here.
        start: see ``gradient_graph``.
        backend: see ``Taylor``.

    Raises:
        NotApplicable: a hook may change gradients where only autograd would call it, the head cuts a gradient off, or
            parameters have several dtypes.
    """
    # Only a head with a second derivative has to be differentiated twice.
    heads = [step for step in steps if step.is_last and not step.is_below_linear_loss]
    edges = [step.edge for step in heads]
    gradients = gradient_graph(loss, edges, start=start) if edges else []
    with explain_differentiation_errors("the gradient of loss"):
        prepare_rules(loss, steps)
    passes = [Pass(taylor_rule(step.rule), step.below is None, step in heads) for step in steps]
    uses = [step.rule.use for step in steps if isinstance(step.rule, Layer)]
    numbers = {p.number for use in uses for p in (use.weight, use.bias) if p is not None}
    probed = [p for p in parameters if p.number in numbers]
    if len({p.tensor.dtype for p in probed}) > 1:
        raise NotApplicable  # probes share one block of memory
    largest = max(math.prod(step.node._input_metadata[0].shape) for step in steps)
    device = parameters[0].tensor.device
    return Taylor(passes, probed, device, largest, backend, edges, gradients)

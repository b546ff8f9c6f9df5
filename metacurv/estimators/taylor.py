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
from types import ModuleType

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.cotangent_capture import prepare_rules
from metacurv.estimators.double_backward import gradient_graph, hessian_vector_products
from metacurv.estimators.errors import NotApplicable, explain_differentiation_errors
from metacurv.estimators.parameters import NumberedParameter
from metacurv.estimators.probe_products import dot
from metacurv.estimators.tangent_plan import Step
from metacurv.estimators.tangent_rules import Layer
from metacurv.estimators.taylor_probes import Probes
from metacurv.estimators.taylor_rules import taylor_rule


class Taylor:
    """Samples of v . (H v), all parameters together.

    Args:
        loss: one element.
        parameters: all that are asked for.
        steps: a plan that covers every use of every parameter; its rules are prepared here.
        start: see ``gradient_graph``.
        backend: what draws the probes, see ``metacurv.ops``.

    Raises:
        NotApplicable: a hook may change gradients where only autograd would call it, the head cuts a gradient off, or
            parameters have several dtypes.
    """

    # Probes taken at once: more are no faster.
    chunk = 16
    # Bound on the elements of their signs and tangents: products that need more gain nothing from chunks.
    chunk_elements = 1 << 24

    def __init__(
        self,
        loss: Tensor,
        parameters: Sequence[NumberedParameter],
        steps: Sequence[Step],
        *,
        start: Tensor | None,
        backend: str,
    ) -> None:
        self.parameters = list(parameters)
        self._steps = steps
        # Only a head with a second derivative has to be differentiated twice.
        heads = [step for step in steps if step.is_last and not step.is_below_linear_loss]
        self._edges = [step.edge for step in heads]
        self.gradients = gradient_graph(loss, self._edges, start=start) if self._edges else []
        with explain_differentiation_errors("the gradient of loss"):
            prepare_rules(loss, steps)
        self._rules = [taylor_rule(step.rule) for step in steps]
        uses = [step.rule.use for step in steps if isinstance(step.rule, Layer)]
        numbers = {p.number for use in uses for p in (use.weight, use.bias) if p is not None}
        self.probed = [p for p in parameters if p.number in numbers]
        if len({p.tensor.dtype for p in self.probed}) > 1:
            raise NotApplicable  # probes share one block of memory
        self._run: ModuleType = ops.implementation(backend, self.parameters[0].tensor.device)

    def samples(self, *, seed: int, first_probe: int, n_samples: int) -> Tensor:
        """v_k . (H v_k) of probes ``first_probe`` ... ``first_probe + n_samples - 1``: float64 [n_samples]."""
        key = ops.as_int64(seed)
        largest = max(math.prod(step.node._input_metadata[0].shape) for step in self._steps)
        per_probe = sum(p.tensor.numel() for p in self.probed) + 2 * largest
        most = max(1, min(self.chunk, self.chunk_elements // max(1, per_probe)))
        parts = []
        probes: Probes | None = None
        for start in range(0, n_samples, most):
            k = min(most, n_samples - start)
            if probes is None or k < most:
                probes = None  # before there are two
                probes = Probes(self.probed, largest=largest, k=k)
            probes.draw(self._run, key, first_probe + start)
            parts.append(self._push(probes, k))
        return torch.cat(parts)

    def _push(self, probes: Probes, k: int) -> Tensor:
        """float64 [k]."""
        terms: list[Tensor] = []
        heads: list[Tensor] = []  # tangents of what the curved heads take
        tangents: Tensor | None = None
        # A few per cent faster than no_grad: there are many small operations.
        with torch.inference_mode():
            for step, rule in zip(self._steps, self._rules, strict=True):
                # A chain's steps follow each other.
                tangents = rule.push(None if step.below is None else tangents, probes, terms)
                if step.is_last and not step.is_below_linear_loss:
                    heads.append(tangents.clone())  # another chain may need the room
        samples = self._through_heads(heads, k)
        return samples.add_(torch.stack(terms).sum(0, dtype=torch.float64)) if terms else samples

    def _through_heads(self, tangents: Sequence[Tensor], n_probes: int) -> Tensor:
        """t_k . (H_head t_k): float64 [K]; tangents: of the inputs y of curved heads, [K, *y.shape] each."""
        samples = torch.zeros(
            n_probes, dtype=torch.float64, device=self.parameters[0].tensor.device
        )
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

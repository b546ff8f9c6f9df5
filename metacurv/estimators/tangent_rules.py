"""How a probe passes through one operation, forward and back: the rules of Pearlmutter's R-operator.

With t the derivative along the probe v at fixed loss function (t(w) = v_w for a parameter w), an operation y = f(x) has

    push:  t(y) = f'(x) t(x)                                  (a layer's own parameters add their share)
    pull:  t(dL/dx) = f'(x)' t(dL/dy) + (f''(x) t(x))' dL/dy

so one push from the parameters to the loss and one pull back give H v. Nothing here needs H v itself: a parameter's sample
v_w . (H v)_w = <v_w, t(dL/dw)> is made of scalar products <t(dL/dx), t(x)> of activations, most of which follow from those
of the operation above without another look at the tensors.

Nodes of the autograd graph give what the rules need: values they saved, and, since a node *is* the map g -> f'(x)' g, they are
called where f'(x)' itself is wanted. For an elementwise f that map is its own transpose, so it serves the push as well.

Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian", sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv.estimators.linear_uses import LinearUse
from metacurv.estimators.probe_products import Probe, dot


class Ledger:
    """The scalar products of one probe, and which of them add up to the sample of which parameter.

    A sum of products is a dict {index of the product: factor}. Sums depend on the graph only, so those that the first probe
    made serve all: ``samples``, by parameter number, is filled while ``is_open``.
    """

    def __init__(self) -> None:
        self.products: list[Tensor] = []
        self.samples: dict[int, dict[int, float]] = {}
        self.is_open = True

    def close(self) -> None:
        """The probe's products have been taken over; the next one begins."""
        self.products = []
        self.is_open = False

    def note(self, product: Tensor) -> dict[int, float]:
        """Keeps a scalar product (0-dim)."""
        self.products.append(product)
        return {len(self.products) - 1: 1.0}

    def credit(self, number: int, amount: dict[int, float], factor: float = 1.0) -> None:
        """Adds ``factor`` times a sum of products to the sample of a parameter."""
        if not self.is_open:
            return
        sample = self.samples.setdefault(number, {})
        for index, value in amount.items():
            sample[index] = sample.get(index, 0.0) + factor * value


class Flow(NamedTuple):
    """What comes back along an edge x: t(dL/dx), None where it is 0, and the sum of products <t(dL/dx), t(x)>."""

    cotangent: Tensor | None
    product: dict[int, float]


NOTHING = Flow(None, {})


class Rule:
    """One operation y = f(x) on the way from the parameters to the loss; ``push`` keeps what ``pull`` needs.

    ``wants_cotangent``: ``prepare`` has to be given dL/dy.
    ``fresh``: ``push`` returns, and ``pull`` sends back, memory that nothing else uses.
    """

    wants_cotangent = False
    fresh = False

    def prepare(self, cotangent: Tensor) -> None:
        """Takes dL/dy, which is the same for all probes."""

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """From t(x), None where x depends on no probed parameter, to t(y)."""
        raise NotImplementedError

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """From what came back along y to what goes back along x (not looked at where t(x) was None)."""
        raise NotImplementedError


class Layer(Rule):
    """A linear layer z = a W' + b with W, and perhaps b, probed.

    With d = dL/dz and R = t(d) W,

        t(dL/da) = R + d V,    v_b . (H v)_b = <sum over rows of t(d), v_b>,
        v_W . (H v)_W = <t(d), a V'> + <d V, t(a)> = <t(d), t(z)> - <sum of t(d), v_b> + <d V, t(a)> - <R, t(a)>.

    Two products with V and two with W, none of which makes anything of the size of W; where a is data, one product with V.
    """

    fresh = True

    def __init__(self, use: LinearUse, *, has_input: bool, stored: bool) -> None:
        self.use = use
        self.stored = stored
        self.wants_cotangent = has_input
        self.a = use.input().detach().contiguous()
        self.right = use.right_factor().detach() if has_input else None  # W'
        self.left = None if self.right is None else self.right.t()  # W

    def prepare(self, cotangent: Tensor) -> None:
        """Keeps d."""
        self.d = cotangent.contiguous()

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """t(z) = a V' + v_b + t(a) W'."""
        tz = probe.forward(self.a, self.use, stored=self.stored)
        if tangent is not None and self.right is not None:
            self.ta = tangent
            tz.addmm_(tangent, self.right)
        return tz

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """t(dL/da), and the samples of W and b."""
        weight, bias = self.use.weight.number, self.use.bias
        ledger.credit(weight, flow.product)
        if bias is not None and flow.cotangent is not None:
            of_bias = ledger.note(torch.mv(flow.cotangent, probe.vectors[bias.number]).sum())
            ledger.credit(bias.number, of_bias)
            ledger.credit(weight, of_bias, -1.0)
        if self.left is None:
            return NOTHING
        back = probe.backward(self.d, self.use, stored=self.stored)
        of_v = ledger.note(dot(back, self.ta))
        both = of_v
        if flow.cotangent is not None:
            back.addmm_(flow.cotangent, self.left)
            both = ledger.note(dot(back, self.ta))
        ledger.credit(weight, of_v, 2.0)
        ledger.credit(weight, both, -1.0)
        del self.ta
        return Flow(back, both)


class FrozenLayer(Rule):
    """A linear layer z = a W' + b with neither W nor b probed."""

    fresh = True

    def __init__(self, right: Tensor) -> None:
        self.right = right.detach()

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """t(z) = t(a) W'."""
        assert tangent is not None  # a node without any live input is a constant
        return tangent @ self.right

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """t(dL/da) = t(dL/dz) W."""
        if flow.cotangent is None:
            return flow
        return Flow(flow.cotangent @ self.right.t(), flow.product)


class LinearInPieces(Rule):
    """Any f with f'' = 0 almost everywhere: ReLU and its kin, a dropout mask, a change of shape.

    Args:
        forward: t -> f'(x) t.
        backward: g -> f'(x)' g.
    """

    def __init__(
        self, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]
    ) -> None:
        self.forward = forward
        self.backward = backward

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """t(y) = f'(x) t(x)."""
        assert tangent is not None
        return self.forward(tangent)

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """t(dL/dx) = f'(x)' t(dL/dy)."""
        if flow.cotangent is None:
            return flow
        return Flow(self.backward(flow.cotangent), flow.product)


class Smooth(Rule):
    """An elementwise f with a second derivative: t(dL/dx) = f'(x) t(dL/dy) + c t(x), c = f''(x) dL/dy."""

    wants_cotangent = True

    def __init__(self, times_slope: Callable[[Tensor], Tensor], below: GradientEdge) -> None:
        self.times_slope = times_slope
        self.below = below

    def prepare(self, cotangent: Tensor) -> None:
        """Makes c, as the derivative of f'(x) dL/dy in x."""
        with torch.enable_grad():
            slopes = self.times_slope(cotangent).sum()
            (self.c,) = torch.autograd.grad(slopes, [self.below], retain_graph=True)

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """t(y) = f'(x) t(x)."""
        assert tangent is not None
        self.tx = tangent
        return self.times_slope(tangent)

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """As the class says."""
        back = self.c * self.tx
        product = {**flow.product, **ledger.note(dot(back, self.tx))}
        if flow.cotangent is not None:
            back += self.times_slope(flow.cotangent)
        del self.tx
        return Flow(back, product)


class LogSoftmax(Rule):
    """y = x - log sum exp x along a dimension, p = exp y.

    t(y) = t(x) - sum p t(x),    t(dL/dx) = t(dL/dy) - p sum t(dL/dy) - p t(y) sum dL/dy.
    """

    wants_cotangent = True

    def __init__(self, y: Tensor, dim: int) -> None:
        self.p = y.detach().exp()
        self.dim = dim

    def prepare(self, cotangent: Tensor) -> None:
        """Keeps - p sum dL/dy."""
        self.scaled_p = -self.p * cotangent.sum(self.dim, keepdim=True)

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """t(y)."""
        assert tangent is not None
        self.tx = tangent
        self.ty = tangent - (self.p * tangent).sum(self.dim, keepdim=True)
        return self.ty

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """As the class says."""
        back = self.scaled_p * self.ty
        if flow.cotangent is not None:
            back += flow.cotangent - self.p * flow.cotangent.sum(self.dim, keepdim=True)
        product = ledger.note(dot(back, self.tx))
        del self.tx, self.ty
        return Flow(back, product)

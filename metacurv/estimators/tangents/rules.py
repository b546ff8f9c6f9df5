"""Rules by which a probe passes through one operation, forward and back: Pearlmutter's R-operator.

With t the derivative along the probe v at fixed loss function (t(w) = v_w for a parameter w), an operation y = f(x) has

    push:  t(y) = f'(x) t(x)                                  (a layer's own parameters add their share)
    pull:  t(dL/dx) = f'(x)' t(dL/dy) + (f''(x) t(x))' dL/dy

so one push from the parameters to the loss and one pull back give H v. Nothing here needs H v itself: a parameter's sample
v_w . (H v)_w = <v_w, t(dL/dw)> is made of scalar products <t(dL/dx), t(x)> of activations, most of which follow from those
of the operation above without another look at the tensors.

Nodes of the autograd graph give what the rules need, once for all probes: values they saved, and the slope f'(x) of an
elementwise f, which is the node applied to ones, since a node *is* the map g -> f'(x)' g.

Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian", sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

# A probe: its vectors by the numbers of the parameters.
Probe = Mapping[int, Tensor]


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Returns the inner product, 0-dim, of x and y, which have the same shape."""
    return torch.dot(x.reshape(-1), y.reshape(-1))


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
        """Drops the probe's products, which have been taken over, for the next probe."""
        self.products = []
        self.is_open = False

    def note(self, product: Tensor) -> dict[int, float]:
        """Keeps a scalar product (0-dim), and returns it as a sum."""
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
    """The flow back along an edge x: t(dL/dx), None where it is 0, and the sum of products <t(dL/dx), t(x)>.

    ``is_owned`` is true where the taker may overwrite the cotangent.
    """

    cotangent: Tensor | None
    product: dict[int, float]
    is_owned: bool = False


NOTHING = Flow(None, {})


class Rule:
    """One operation y = f(x) on the way from the parameters to the loss; ``push`` keeps what ``pull`` needs.

    ``wants_cotangent``: True where ``prepare`` must be given dL/dy.
    ``is_owned``: True where the taker may overwrite the result of ``push``.
    """

    wants_cotangent = False
    is_owned = False

    def prepare(self, cotangent: Tensor) -> None:
        """Takes dL/dy, which is the same for all probes."""

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """Maps t(x), None where x depends on no probed parameter, to t(y)."""
        raise NotImplementedError

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """Maps the flow back along y to the flow back along x (not looked at where t(x) was None)."""
        raise NotImplementedError


class Layer(Rule):
    """A linear layer z = a W' + b with W, and perhaps b, probed.

    With d = dL/dz and R = t(d) W,

        t(dL/da) = R + d V,    v_b . (H v)_b = <sum over rows of t(d), v_b>,
        v_W . (H v)_W = <t(d), a V'> + <d V, t(a)> = <t(d), t(z)> - <sum of t(d), v_b> + <d V, t(a)> - <R, t(a)>.

    This takes two products with V and two with W, and none makes a matrix of the size of W; where a is data, one product with
    V.
    """

    is_owned = True

    def __init__(
        self, a: Tensor, right: Tensor | None, *, weight: int, transposed: bool, bias: int | None
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.transposed = transposed
        self.wants_cotangent = right is not None
        self.a = a.detach().contiguous()
        self.right = None if right is None else right.detach()  # W'
        self.left = None if self.right is None else self.right.t()  # W

    def _rows(self, probe: Probe) -> Tensor:
        """Returns V as [out, in]."""
        v = probe[self.weight]
        return v if self.transposed else v.t()

    def prepare(self, cotangent: Tensor) -> None:
        """Keeps d."""
        self.d = cotangent.contiguous()

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """Returns t(z) = a V' + v_b + t(a) W'."""
        bias = None if self.bias is None else probe[self.bias]
        tz = F.linear(self.a, self._rows(probe), bias)
        if tangent is not None and self.right is not None:
            self.ta = tangent
            tz.addmm_(tangent, self.right)
        return tz

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """Returns the flow with t(dL/da), and credits the samples of W and b."""
        weight, bias = self.weight, self.bias
        ledger.credit(weight, flow.product)
        if bias is not None and flow.cotangent is not None:
            of_bias = ledger.note(torch.mv(flow.cotangent, probe[bias]).sum())
            ledger.credit(bias, of_bias)
            ledger.credit(weight, of_bias, -1.0)
        if self.left is None:
            return NOTHING
        back = torch.mm(self.d, self._rows(probe))
        flat, ta = back.view(-1), self.ta.reshape(-1)
        of_v = ledger.note(torch.dot(flat, ta))
        both = of_v
        if flow.cotangent is not None:
            back.addmm_(flow.cotangent, self.left)
            both = ledger.note(torch.dot(flat, ta))
        ledger.credit(weight, of_v, 2.0)
        ledger.credit(weight, both, -1.0)
        del self.ta
        return Flow(back, both, is_owned=True)


class FrozenLayer(Rule):
    """A linear layer z = a W' + b with neither W nor b probed."""

    is_owned = True

    def __init__(self, right: Tensor) -> None:
        self.right = right.detach()

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """Returns t(z) = t(a) W'."""
        assert tangent is not None  # a node without any live input is a constant
        return tangent @ self.right

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """Returns the flow with t(dL/da) = t(dL/dz) W."""
        if flow.cotangent is None:
            return flow
        return Flow(flow.cotangent @ self.right.t(), flow.product)


class Reshape(Rule):
    """An operation that gives the same elements another shape."""

    def __init__(self, before: torch.Size, after: torch.Size) -> None:
        self.before = before
        self.after = after

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """Returns t(x) in the shape of y."""
        assert tangent is not None
        return tangent.reshape(self.after)

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """Returns the flow with t(dL/dy) in the shape of x."""
        if flow.cotangent is None:
            return flow
        return Flow(flow.cotangent.reshape(self.before), flow.product)


class Elementwise(Rule):
    """An elementwise f with f'' = 0 almost everywhere: ReLU and its kin, a dropout mask.

    Args:
        slope: f'(x).
        owns_tangent: True where t(x) may be overwritten.
    """

    def __init__(self, slope: Tensor, *, owns_tangent: bool) -> None:
        self.slope = slope
        self.owns_tangent = owns_tangent

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """Returns t(y) = f'(x) t(x)."""
        assert tangent is not None
        return tangent.mul_(self.slope) if self.owns_tangent else tangent * self.slope

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """Returns the flow with t(dL/dx) = f'(x) t(dL/dy)."""
        back = flow.cotangent
        if back is None:
            return flow
        return Flow(
            back.mul_(self.slope) if flow.is_owned else back * self.slope, flow.product, True
        )


class Smooth(Rule):
    """An elementwise f with a second derivative: t(dL/dx) = f'(x) t(dL/dy) + c t(x), c = f''(x) dL/dy.

    Args:
        times_slope: the map g -> f'(x) g, with the graph that leads to x.
        slope: f'(x).
        below: the edge of x.
    """

    wants_cotangent = True

    def __init__(
        self, times_slope: Callable[[Tensor], Tensor], slope: Tensor, below: GradientEdge
    ) -> None:
        self.slope = slope
        self.times_slope = times_slope
        self.below = below

    def prepare(self, cotangent: Tensor) -> None:
        """Computes c, as the derivative of f'(x) dL/dy in x."""
        with torch.enable_grad():
            slopes = self.times_slope(cotangent).sum()
            (self.c,) = torch.autograd.grad(slopes, [self.below], retain_graph=True)

    def push(self, tangent: Tensor | None, probe: Probe) -> Tensor:
        """Returns t(y) = f'(x) t(x)."""
        assert tangent is not None
        self.tx = tangent
        return tangent * self.slope

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """Returns the flow with t(dL/dx) = f'(x) t(dL/dy) + c t(x)."""
        back = self.c * self.tx
        product = {**flow.product, **ledger.note(dot(back, self.tx))}
        if flow.cotangent is not None:
            back.addcmul_(flow.cotangent, self.slope)
        del self.tx
        return Flow(back, product)


class LogSoftmax(Rule):
    """The log softmax y = x - log sum exp x along a dimension, p = exp y.

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
        """Returns t(y) = t(x) - sum p t(x)."""
        assert tangent is not None
        self.tx = tangent
        self.ty = tangent - (self.p * tangent).sum(self.dim, keepdim=True)
        return self.ty

    def pull(self, flow: Flow, probe: Probe, ledger: Ledger) -> Flow:
        """Returns the flow with t(dL/dx) = t(dL/dy) - p sum t(dL/dy) - p t(y) sum dL/dy."""
        back = self.scaled_p * self.ty
        if flow.cotangent is not None:
            back += flow.cotangent - self.p * flow.cotangent.sum(self.dim, keepdim=True)
        product = ledger.note(dot(back, self.tx))
        del self.tx, self.ty
        return Flow(back, product)

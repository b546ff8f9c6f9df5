"""Rules by which a probe passes through one operation, forward and back: Pearlmutter's R-operator.

With t the derivative along the probe v at fixed loss function (t(w) = v_w for a parameter w), an operation y = f(x) has

    push:  t(y) = f'(x) t(x)                                  (a layer's own parameters add their share)
    pull:  t(dL/dx) = f'(x)' t(dL/dy) + (f''(x) t(x))' dL/dy

so one push from the parameters to the loss and one pull back give H v. Nothing here needs H v itself: a parameter's sample
v_w . (H v)_w = <v_w, t(dL/dw)> is made of scalar products of activations, which the layers keep. A linear f without parameters
leaves the product <t(dL/dx), t(x)> as it is, so that it goes down with the cotangent.

Nodes of the autograd graph give what the rules need, once for all probes: values they saved, and the slope f'(x) of an
elementwise f, which is the node applied to ones, since a node *is* the map g -> f'(x)' g.

Source: Pearlmutter 1994, "Fast exact multiplication by the Hessian", sections 3 and 4.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import GradientEdge

# A probe: its vectors by the numbers of the parameters.
Probe = Mapping[int, Tensor]


class Flow(NamedTuple):
    """The flow back along an edge x: t(dL/dx), and the scalar product of that and t(x) (0-dim); None stands for 0."""

    cotangent: Tensor | None
    product: Tensor | None


NOTHING = Flow(None, None)


class Rule(ABC):
    """One operation y = f(x) on the way from the parameters to the loss; ``push`` keeps what ``pull`` needs.

    ``wants_cotangent``: True where f is curved, so that ``prepare`` must be given dL/dy, the same for all probes.
    """

    wants_cotangent = False

    def prepare(self, cotangent: Tensor) -> None:
        """Takes dL/dy."""
        raise NotImplementedError

    @abstractmethod
    def push(self, tangent: Tensor, probe: Probe) -> Tensor:
        """Maps t(x) to t(y)."""

    @abstractmethod
    def pull(self, flow: Flow, probe: Probe) -> Flow:
        """Maps the flow back along y to that along x."""


class Linear(Rule):
    """A linear f that holds no probed parameter: a view, a frozen layer, or ReLU and its kin, where f'' = 0 almost everywhere.

    Args:
        f: the map t(x) -> t(y).
        transpose: the map t(dL/dy) -> t(dL/dx), its transpose.
    """

    def __init__(
        self, f: Callable[[Tensor], Tensor], transpose: Callable[[Tensor], Tensor]
    ) -> None:
        self.f = f
        self.transpose = transpose

    def push(self, tangent: Tensor, probe: Probe) -> Tensor:
        """Returns t(y) = f t(x)."""
        return self.f(tangent)

    def pull(self, flow: Flow, probe: Probe) -> Flow:
        """Returns the flow with t(dL/dx) = f' t(dL/dy)."""
        td = flow.cotangent
        return flow if td is None else Flow(self.transpose(td), flow.product)


class Layer(Rule):
    """A linear layer z = a W' + b with W, and perhaps b, probed.

    With d = dL/dz and R = t(d) W,

        t(z) = a V' + v_b + t(a) W',    t(dL/da) = R + d V,    v_b . (H v)_b = <sum over rows of t(d), v_b>,
        v_W . (H v)_W = <t(d), a V'> + <d V, t(a)> = <t(d), t(z)> - <sum of t(d), v_b> - <R, t(a)> + <d V, t(a)>.

    This takes two products with V and two with W, and none makes a matrix of the size of W; where a is data, one product with
    V. ``products`` has, of the latest probe, <t(d), t(z)>, <sum of t(d), v_b>, <R + d V, t(a)> and <d V, t(a)>.

    Args:
        a: the input.
        right: W', or None where a is data.
        weight: the number of W.
        transposed: True for z = a W', False for z = a W.
        bias: the number of b, if it is probed.
    """

    def __init__(
        self, a: Tensor, right: Tensor | None, *, weight: int, transposed: bool, bias: int | None
    ) -> None:
        self.weight = weight
        self.bias = bias
        self.transposed = transposed
        self.wants_cotangent = right is not None
        self.a = a.detach().contiguous()
        self.right = None if right is None else right.detach()
        # Rules run in inference mode, where not every device can make a view.
        self.left = None if self.right is None else self.right.t()
        self.products: list[Tensor | None] = []
        # What each of the products adds to the samples of which parameters.
        self.shares = ({weight: 1.0}, {weight: -1.0, bias: 1.0}, {weight: -1.0}, {weight: 2.0})

    def _rows(self, probe: Probe) -> Tensor:
        """Returns V as [out, in]."""
        v = probe[self.weight]
        return v if self.transposed else v.t()

    def prepare(self, cotangent: Tensor) -> None:
        """Keeps d."""
        self.d = cotangent.contiguous()

    def push(self, tangent: Tensor, probe: Probe) -> Tensor:
        """Returns t(z); where a is data, t(a) is not looked at."""
        bias = None if self.bias is None else probe[self.bias]
        tz = F.linear(self.a, self._rows(probe), bias)
        if self.right is not None:
            self.ta = tangent
            tz.addmm_(tangent, self.right)
        return tz

    def pull(self, flow: Flow, probe: Probe) -> Flow:
        """Returns the flow with t(dL/da), and keeps the products."""
        td, of_bias = flow.cotangent, None
        if td is not None and self.bias is not None:
            of_bias = torch.mv(td, probe[self.bias]).sum()
        self.products = [flow.product, of_bias, None, None]
        if self.left is None:
            return NOTHING
        back = torch.mm(self.d, self._rows(probe))
        flat, ta = back.view(-1), self.ta.reshape(-1)
        of_v = below = torch.dot(flat, ta)
        if td is not None:
            back.addmm_(td, self.left)
            below = torch.dot(flat, ta)
        self.products[2:] = below, of_v
        del self.ta
        return Flow(back, below)


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

    def push(self, tangent: Tensor, probe: Probe) -> Tensor:
        """Returns t(y) = f'(x) t(x)."""
        self.tx = tangent
        return tangent * self.slope

    def pull(self, flow: Flow, probe: Probe) -> Flow:
        """Returns the flow with t(dL/dx)."""
        back = self.c * self.tx
        if flow.cotangent is not None:
            back.addcmul_(flow.cotangent, self.slope)
        product = dot(back, self.tx)
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

    def push(self, tangent: Tensor, probe: Probe) -> Tensor:
        """Returns t(y)."""
        self.tx = tangent
        self.ty = tangent - (self.p * tangent).sum(self.dim, keepdim=True)
        return self.ty

    def pull(self, flow: Flow, probe: Probe) -> Flow:
        """Returns the flow with t(dL/dx)."""
        back = self.scaled_p * self.ty
        if flow.cotangent is not None:
            back += flow.cotangent - self.p * flow.cotangent.sum(self.dim, keepdim=True)
        product = dot(back, self.tx)
        del self.tx, self.ty
        return Flow(back, product)


def dot(x: Tensor, y: Tensor) -> Tensor:
    """Returns the inner product, 0-dim, of x and y, which have the same shape."""
    return torch.dot(x.reshape(-1), y.reshape(-1))

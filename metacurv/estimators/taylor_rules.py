"""Rules by which K probes pass through one operation at once, and what its curvature adds to each probe's v . (H v).

Along a probe v the parameters move as w + e v. With ' and '' for the first and second derivative in e at e = 0 (w' = v,
w'' = 0), an operation y = f(x) has

    y' = f'(x) x' (+ what its own parameters add),    y'' = f'(x) x'' + s,

with a source s that is quadratic in first derivatives. y'' is linear in the sources below it, so none of it is pushed: a source
adds <dL/dy, s> to L'' = v . (H v), whatever lies above. dL/dy is the same for all probes, and the plan's rules have it.

Tangents have the shape [K, *y.shape], in whatever layout the matrix products make fastest, and lie in the room that ``Probes``
gives. They belong to the one operation that takes them next, which may overwrite them.

Sources: Griewank and Walther 2008, "Evaluating Derivatives", chapter 13 (Taylor coefficients); Dangel et al. 2025, "Collapsing
Taylor Mode Automatic Differentiation", which pushes the sum of y'' over probes, where its dual here keeps probes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor

from metacurv.estimators.errors import NotApplicable
from metacurv.estimators.tangent_rules import (
    Elementwise,
    FrozenLayer,
    Layer,
    LogSoftmax,
    Reshape,
    Rule,
    Smooth,
)
from metacurv.estimators.taylor_probes import Probes

# MKL makes an output of fewer columns two to three times faster transposed.
_FEWEST_COLUMNS = 16


class TaylorRule(Protocol):
    """The interface of a rule for one operation y = f(x)."""

    def push(self, tangents: Tensor | None, probes: Probes, terms: list[Tensor]) -> Tensor:
        """Maps x' to y', [K, ...]; adds a term, [K], to ``terms`` where f is curved. x' is None where x has none."""


class TaylorLayer:
    """A layer z = a W' + b: z'_k = a V_k' + v_k + a'_k W', and a source 2 a'_k V_k'. With d = dL/dz it adds 2 <d V_k, a'_k>."""

    def __init__(
        self,
        a: Tensor,
        right: Tensor | None,
        d: Tensor | None,
        weight: int,
        bias: int | None,
        *,
        transposed: bool,
    ) -> None:
        """Keeps the layer's tensors and numbers.

        ``right`` is W'; it and ``d`` are None where a is data. ``weight`` and ``bias`` are parameter numbers.
        """
        self.a = a
        self.right = right
        self.twice_d = None if d is None else 2 * d
        self.weight = weight
        self.bias = bias
        self.transposed = transposed

    def push(self, tangents: Tensor | None, probes: Probes, terms: list[Tensor]) -> Tensor:
        """Maps a' [K, rows, in] to z' [K, rows, out]."""
        signs = probes.signs[self.weight]
        v = signs.transpose(1, 2) if self.transposed else signs  # V_k', [K, in, out]
        bias = None if self.bias is None else probes.signs[self.bias]
        if self.twice_d is not None and tangents is not None:
            d, back = _repeated(self.twice_d, len(v)), probes.scratch(*tangents.shape)
            torch.bmm(d, v.transpose(1, 2), out=back)
            terms.append(_row_sums(back.mul_(tangents)))
        if v.shape[2] < _FEWEST_COLUMNS:
            return self._transposed(tangents, v, bias, probes)
        a = _repeated(self.a, len(v))
        z = probes.output(len(v), self.a.shape[0], v.shape[2])
        _product(a, v, None if bias is None else bias.unsqueeze(1), z)
        if self.right is not None and tangents is not None:
            # One product for all probes.
            z.flatten(0, 1).addmm_(tangents.flatten(0, 1), self.right)
        return z

    def _transposed(
        self, tangents: Tensor | None, v: Tensor, bias: Tensor | None, probes: Probes
    ) -> Tensor:
        a = _repeated(self.a.t(), len(v))
        z = probes.output(len(v), v.shape[2], self.a.shape[0])
        _product(v.transpose(1, 2), a, None if bias is None else bias.unsqueeze(2), z)
        if self.right is not None and tangents is not None:
            z.baddbmm_(_repeated(self.right.t(), len(v)), tangents.transpose(1, 2))
        return z.transpose(1, 2)


class TaylorFrozenLayer:
    """A layer z = a W' + b with neither W nor b probed: z' = a' W'."""

    def __init__(self, right: Tensor) -> None:
        self.right = right

    def push(self, tangents: Tensor | None, probes: Probes, terms: list[Tensor]) -> Tensor:
        """Maps a' [K, rows, in] to z' [K, rows, out]."""
        assert tangents is not None  # a node without any live input is a constant
        z = probes.output(*tangents.shape[:2], self.right.shape[1])
        torch.mm(tangents.flatten(0, 1), self.right, out=z.flatten(0, 1))
        return z


class TaylorReshape:
    """An operation that gives the same elements another shape."""

    def __init__(self, after: torch.Size) -> None:
        self.after = after

    def push(self, tangents: Tensor | None, probes: Probes, terms: list[Tensor]) -> Tensor:
        """Returns x' in the shape of y."""
        assert tangents is not None
        return tangents.reshape(len(tangents), *self.after)


class TaylorElementwise:
    """An elementwise f with f'' = 0 almost everywhere: y' = f'(x) x'."""

    def __init__(self, slope: Tensor) -> None:
        self.slope = slope

    def push(self, tangents: Tensor | None, probes: Probes, terms: list[Tensor]) -> Tensor:
        """Overwrites x' with y'."""
        assert tangents is not None
        return tangents.mul_(self.slope)


class TaylorSmooth:
    """An elementwise f: y' = f'(x) x', and a source f''(x) x'^2. With c = f''(x) dL/dy it adds <c, x'^2>."""

    def __init__(self, slope: Tensor, c: Tensor) -> None:
        self.slope = slope
        self.c = c

    def push(self, tangents: Tensor | None, probes: Probes, terms: list[Tensor]) -> Tensor:
        """Overwrites x' with y'."""
        assert tangents is not None
        terms.append(_curvature(tangents, self.c, probes))
        return tangents.mul_(self.slope)


class TaylorLogSoftmax:
    """The log softmax y = x - log sum exp x, p = exp y, with y' = x' - sum p x'.

    Its source is -sum p y'^2, the same for each y of a sum. It adds -<p sum dL/dy, y'^2>, since sum p x'^2 - (sum p x')^2 = sum
    p y'^2, a variance. Taken about its mean it does not cancel where logits move together.
    """

    def __init__(self, p: Tensor, scaled_p: Tensor, dim: int) -> None:
        """Keeps p; ``scaled_p`` is -p sum dL/dy, and ``dim`` the dimension of the classes in y."""
        self.p = p
        self.scaled_p = scaled_p
        self.dim = dim if dim < 0 else dim + 1

    def push(self, tangents: Tensor | None, probes: Probes, terms: list[Tensor]) -> Tensor:
        """Overwrites x' with y'."""
        assert tangents is not None
        tangents -= (self.p * tangents).sum(self.dim, keepdim=True)
        terms.append(_curvature(tangents, self.scaled_p, probes))
        return tangents


def _layer(rule: Layer) -> TaylorLayer:
    use = rule.use
    return TaylorLayer(
        rule.a,
        rule.right,
        None if rule.right is None else rule.d,
        use.weight.number,
        None if use.bias is None else use.bias.number,
        transposed=use.transposed,
    )


_RULES: dict[type[Rule], Callable[[Any], TaylorRule]] = {
    Layer: _layer,
    FrozenLayer: lambda rule: TaylorFrozenLayer(rule.right),
    Reshape: lambda rule: TaylorReshape(rule.after),
    Elementwise: lambda rule: TaylorElementwise(rule.slope),
    Smooth: lambda rule: TaylorSmooth(rule.slope, rule.c),
    LogSoftmax: lambda rule: TaylorLogSoftmax(rule.p, rule.scaled_p, rule.dim),
}


def taylor_rule(rule: Rule) -> TaylorRule:
    """Returns the rule for K probes that belongs to a plan's prepared rule; raises NotApplicable if there is none."""
    if type(rule) not in _RULES:
        raise NotApplicable
    return _RULES[type(rule)](rule)


def _repeated(matrix: Tensor, k: int) -> Tensor:
    """Repeats [m, n] as [k, m, n], without a copy."""
    return matrix.expand(k, *matrix.shape)


def _product(x: Tensor, y: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """Writes x y + bias, [K, m, n], to ``out``; bias: of a shape that expands to that."""
    if bias is None:
        torch.bmm(x, y, out=out)
    else:
        torch.baddbmm(bias, x, y, out=out)


def _curvature(tangents: Tensor, factors: Tensor, probes: Probes) -> Tensor:
    """Returns <factors, t_k^2> of tangents t, [K]."""
    squares = torch.mul(tangents, tangents, out=probes.scratch(*tangents.shape))
    return _row_sums(squares.mul_(factors))


def _row_sums(x: Tensor) -> Tensor:
    """Sums [K, ...] to [K]."""
    return x.sum(tuple(range(1, x.dim())))

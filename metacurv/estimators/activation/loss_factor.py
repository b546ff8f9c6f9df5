"""Factors of H_out, the second derivative of the loss in the model's output; the model itself plays no part.

Each gives cotangents (u, w) with E[u w'] = H_out from random signs, or columns whose sum of u w' is H_out:

    softmax (any loss that is linear in log softmax(z)): H_out = s (diag p - p p'), s the target's total weight, a number a row.
        u = S e with S = sqrt(s) (diag(sqrt p) - p sqrt(p)'). S has rank C - 1: its columns are s^1/2 diag(sqrt p) times a basis
        of the complement of the unit vector sqrt(p), which a Householder reflection gives.
    elementwise losses: H_out = diag(h), u = sqrt|h| e, w = sgn(h) u.
    any other: u = e, w = H_out e by a double backward through the loss alone.

Source: Dangel, Harmeling, Hennig 2020, "Modular block-diagonal curvature approximations", section 3 (the symmetric factor).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from metacurv.estimators.graph.custom_functions import check_differentiable
from metacurv.estimators.graph.differentiate import (
    gradient_graph,
    hessian_vector_products,
    refuse_cut_graph,
)
from metacurv.estimators.problem.elsewhere import Again
from metacurv.estimators.problem.numerics import wide, wide_dtype
from metacurv.ops._reference import OpSet
from metacurv.ops._reference.factors import (
    fill_with_probes,
    random_products,
    reflected_columns,
)

Pair = tuple[Tensor, Tensor]

_CHUNK = 1 << 20  # elements of what is made beside a result at a time


@dataclass(frozen=True)
class Signs:
    """A source of random signs: ``n`` probes from ``first`` on, under one seed, as parameter number 0."""

    run: OpSet
    key: int
    first: int
    n: int

    def like(self, x: Tensor, number: int = 0) -> Tensor:
        """Returns signs [n, *x.shape] of x's dtype, float32 at least."""
        signs = torch.empty((self.n, *x.shape), dtype=wide_dtype(x.dtype), device=x.device)
        return fill_with_probes(self.run, signs, self.key, self.first, number)


class OutputFactor:
    """Cotangents at the boundary between model and loss.

    ``shape`` is that of the boundary. ``is_definite`` is true where u and w are the same tensor.
    ``columns_per_sample`` is the number of columns of one example, of which the first axis holds ``samples``.
    """

    is_definite = True
    shape: torch.Size
    columns_per_sample: int

    def draw(self, signs: Signs) -> Pair:
        """Returns (u, w) for every probe: [n, *shape]."""
        raise NotImplementedError

    def columns(self, start: int, stop: int) -> Pair:
        """Returns (u, w) of columns ``start`` ... ``stop - 1`` of every example at once: [stop - start, *shape]."""
        raise NotImplementedError


class SoftmaxFactor(OutputFactor):
    """The factor of a loss that is linear in log p = log_softmax(z).

    Args:
        log_p: log softmax of z, any shape.
        dim: the axis of the classes.
        weight: s = -dL/d(log p) summed over classes: of log_p's shape without ``dim``.
        samples: the number of examples along the boundary's first axis.
        is_definite: True where ``weight`` is known to be >= 0 everywhere.
    """

    def __init__(
        self, log_p: Tensor, dim: int, weight: Tensor, samples: int, *, is_definite: bool
    ) -> None:
        self.shape = log_p.shape
        self._dim = dim % log_p.dim()
        rows = log_p.movedim(self._dim, -1)
        self._moved_shape = rows.shape
        # [..., C]: a row for each example and position.
        self._log_p = rows if rows.dim() > 1 else rows.unsqueeze(0)
        self._classes = rows.shape[-1]
        weight = weight.reshape(-1).to(wide_dtype(log_p.dtype))
        self._sign: Tensor | None = None
        if not is_definite and bool((weight < 0).any()):
            self.is_definite = False
            self._sign = weight.sign().unsqueeze(1)
            weight = weight.abs()
        self._root = weight.sqrt()
        self._samples = samples
        self._positions = len(self._root) // max(1, samples)
        self.columns_per_sample = self._positions * (self._classes - 1)

    @cached_property
    def _every_sqrt_p(self) -> Tensor:
        return _sqrt_p(self._log_p)

    def _pair(self, u: Tensor) -> Pair:
        """Returns (u, w) for u: [R, M, C]."""
        placed = self._placed(u)
        return placed, placed if self._sign is None else self._placed(u * self._sign)

    def _placed(self, u: Tensor) -> Tensor:
        return u.view(len(u), *self._moved_shape).movedim(-1, self._dim + 1)

    def draw(self, signs: Signs) -> Pair:
        """Returns (u, w) for every probe: [n, *shape]. Signs are numbered with the classes along the last axis.

        Square roots of p are made a few examples at a time: over a large vocabulary each tensor of the output's size counts.
        """
        u = signs.like(self._log_p)
        root = self._root.view(self._log_p.shape[:-1])
        for first in range(0, len(u[0]), step := max(1, _CHUNK // (self._log_p[:1].numel() or 1))):
            part = slice(first, first + step)
            sqrt_p = _sqrt_p(self._log_p[part])
            random_products(sqrt_p, root[part].flatten(), u[:, part].view(len(u), *sqrt_p.shape))
        return self._pair(u.view(len(u), -1, self._classes))

    def columns(self, start: int, stop: int) -> Pair:
        """Returns (u, w) of columns ``start`` ... ``stop - 1``: [stop - start, *shape].

        Column j belongs to position j // (C - 1) of each example: a sequence has several, each with a block of its own.
        """
        if self._positions == 1:
            return self._pair(reflected_columns(self._every_sqrt_p, self._root, start, stop))
        q = self._every_sqrt_p.view(self._samples, self._positions, self._classes)
        root = self._root.view(self._samples, self._positions)
        u = q.new_zeros((stop - start, *q.shape))
        each = self._classes - 1
        for position in range(start // each, (stop - 1) // each + 1):
            first, last = max(start, position * each), min(stop, (position + 1) * each)
            u[first - start : last - start, :, position] = reflected_columns(
                q[:, position],
                root[:, position],
                first - position * each,
                last - position * each,
            )
        return self._pair(u.view(stop - start, -1, self._classes))


def _sqrt_p(log_p: Tensor) -> Tensor:
    """Returns the square roots of p, float32 at least, [M, C]; log_p: [..., C]."""
    return wide(log_p).exp().sqrt_().reshape(-1, log_p.shape[-1])


class DiagonalFactor(OutputFactor):
    """The factor of an elementwise loss; h: the diagonal of H_out, any shape."""

    def __init__(self, h: Tensor, samples: int) -> None:
        self.shape = h.shape
        h = wide(h)
        self._root = h.abs().sqrt()
        self._sign: Tensor | None = None
        if bool((h < 0).any()):
            self.is_definite = False
            self._sign = h.sign()
        self._samples = samples
        self.columns_per_sample = h.numel() // max(1, samples)

    def _pair(self, u: Tensor) -> Pair:
        return u, u if self._sign is None else u * self._sign

    def draw(self, signs: Signs) -> Pair:
        """Returns (u, w) for every probe: [n, *shape]."""
        return self._pair(signs.like(self._root).mul_(self._root))

    def columns(self, start: int, stop: int) -> Pair:
        """Returns (u, w) of columns ``start`` ... ``stop - 1``; column j touches element j of each example."""
        return self._pair(_unit(self._root, self._samples, start, stop))


class GenericFactor(OutputFactor):
    """The factor of any loss that can be differentiated twice in the output.

    Args:
        loss: one element.
        edge: where the gradient in the output arrives.
        like: a tensor of the output's shape, dtype and device.
        samples: the number of examples along the first axis.
        again: see ``check_differentiable``.
    """

    is_definite = False

    def __init__(
        self, loss: Tensor, edge: GradientEdge, like: Tensor, samples: int, again: Again | None
    ) -> None:
        self.shape = like.shape
        self._edge = edge
        self._like = like
        self._samples = samples
        self.columns_per_sample = like.numel() // max(1, samples)
        assert loss.grad_fn is not None  # check_loss saw to it
        check_differentiable([loss.grad_fn], [edge], again=again)
        # A once-differentiable function leaves its mark only on gradients that carry a graph on arrival.
        start = torch.ones_like(loss, requires_grad=True)
        (gradient,) = gradient_graph(loss, [edge], start=start)
        refuse_cut_graph([gradient])
        self._gradient = gradient if gradient is not None and gradient.requires_grad else None

    def times_hessian(self, e: Tensor) -> Tensor:
        """Returns H_out e; e: [*shape]."""
        if self._gradient is None:  # linear in the output
            return torch.zeros_like(e)
        (product,) = hessian_vector_products(
            [self._gradient], [e.to(self._gradient.dtype)], [self._edge]
        )
        return torch.zeros_like(e) if product is None else product.to(e.dtype)

    def _pairs(self, e: Tensor) -> Pair:
        rows = e.reshape(-1, *self.shape)
        products = [self.times_hessian(row.contiguous()) for row in rows]
        return e, torch.stack(products).view(e.shape)

    def draw(self, signs: Signs) -> Pair:
        """Returns (u, w) for every probe: [n, *shape]."""
        return self._pairs(signs.like(self._like))

    def columns(self, start: int, stop: int) -> Pair:
        """Returns (u, w) of columns ``start`` ... ``stop - 1``.

        Column j is the unit vector of element j of each example, which is right where examples do not share a loss.
        """
        ones = torch.ones(self.shape, dtype=wide_dtype(self._like.dtype), device=self._like.device)
        return self._pairs(_unit(ones, self._samples, start, stop))


def _unit(values: Tensor, samples: int, start: int, stop: int) -> Tensor:
    """Returns [stop - start, *values.shape]: ``values`` at one element of each example, 0 elsewhere."""
    flat = values.reshape(samples, -1)
    u = flat.new_zeros((stop - start, *flat.shape))
    rows = torch.arange(stop - start, device=flat.device)
    u[rows, :, rows + start] = flat[:, start:stop].t()
    return u.view(stop - start, *values.shape)


def diagonal_of(loss: Tensor, edge: GradientEdge, like: Tensor) -> Tensor:
    """Returns h of an elementwise loss, as H_out times ones."""
    (gradient,) = gradient_graph(loss, [edge])
    if gradient is None or not gradient.requires_grad:
        return torch.zeros_like(like)
    (h,) = hessian_vector_products([gradient], [torch.ones_like(gradient)], [edge])
    return torch.zeros_like(like) if h is None else h

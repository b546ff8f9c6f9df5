"""Uses of a parameter at one place, and the gradient that a cotangent there gives each example.

All of them are linear in the parameter, so that d^2 l / d theta^2 = J' (d^2 l / dz^2) J holds for the Hessian as for the
Gauss-Newton matrix, with z the output of the operation and J = dz / d theta.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.autograd.graph import Node

from metacurv.estimators.activation.batch_layout import Layout
from metacurv.estimators.activation.per_sample_products import (
    patches,
    row_products,
    shared_products,
)
from metacurv.estimators.graph.torch_private import output_of, saved, signed
from metacurv.estimators.problem.numerics import wide


class Use:
    """One place where a parameter is used. u, w: cotangents [R, *shape of z]; float32 at least."""

    def products(self, u: Tensor, w: Tensor) -> Tensor:
        """Returns <gradient from u, gradient from w> of each example: [R, examples]."""
        raise NotImplementedError

    def gradients(self, u: Tensor) -> Tensor:
        """Returns per-example gradients: [R, examples, *shape of the parameter]."""
        raise NotImplementedError


class _LayerUse(Use):
    """The weight of a linear layer or a convolution; a gradient is a sum of products of inputs and cotangents."""

    _a: Tensor  # the inputs [n, g, T, i] of n examples in g groups, at T places
    _shape: tuple[int, ...]  # that of the weight
    _is_inputs_first: bool  # of the weight's axes

    def _cotangents(self, u: Tensor) -> Tensor:
        """Returns the cotangents by example: [R, n, g, T, o]."""
        raise NotImplementedError

    def products(self, u: Tensor, w: Tensor) -> Tensor:
        """Returns <gradient from u, gradient from w> of each example: [R, examples]."""
        of_u = self._cotangents(u)
        return shared_products(self._a, of_u, of_u if u is w else self._cotangents(w))

    def gradients(self, u: Tensor) -> Tensor:
        """Returns per-example gradients: [R, examples, *shape of the weight]."""
        of_u = self._cotangents(u)
        left, right = (self._a, of_u) if self._is_inputs_first else (of_u, self._a)
        return (left.transpose(-1, -2) @ right).reshape(*of_u.shape[:2], *self._shape)


class WeightUse(_LayerUse):
    """The weight of a linear layer with the input a [rows, in], used at any number of places.

    ``transposed``: True for z = a W' + b, with W [out, in]; False for z = a W, with W [in, out].
    """

    def __init__(
        self, a: Tensor, layout: Layout, weight_shape: tuple[int, ...], *, transposed: bool
    ) -> None:
        self._layout, self._shape = layout, weight_shape
        self._is_inputs_first = not transposed
        self._a = _rows(layout.bring(a), 0).unsqueeze(1)

    def _cotangents(self, u: Tensor) -> Tensor:
        return _rows(self._layout.bring(u, 1), 1).unsqueeze(2)

    @property
    def inputs(self) -> Tensor:
        """The inputs by example, [n, T, in]."""
        return self._a[:, 0]

    def rows(self, u: Tensor) -> Tensor:
        """Returns cotangents by example, [R, n, T, out]."""
        return self._cotangents(u)[:, :, 0]

    def goes_with(self, lookup: EmbeddingUse) -> bool:
        """Tells whether z = a W' of the table that is looked up, with fewer pairs of places than entries of W."""
        if self._is_inputs_first or len(self._a) != len(lookup.indices):
            return False
        return self._a.shape[2] * lookup.indices.shape[1] < math.prod(self._shape)


def window_of(node: Node) -> dict[str, tuple[int, ...]]:
    """Returns how a convolution's window goes over its input, as ``patches`` takes it."""
    return {key: tuple(saved(node, key)) for key in ("stride", "padding", "dilation")}


class ConvolutionUse(_LayerUse):
    """The weight of a convolution at a node: a linear layer over patches.

    ``weight_shape``: [out, in / groups, *kernel], of a transposed convolution [in, out / groups, *kernel].
    """

    def __init__(self, node: Node, layout: Layout, weight_shape: tuple[int, ...]) -> None:
        a = wide(saved(node, "input"))
        self._layout, self._shape = layout, weight_shape
        self._groups = saved(node, "groups")
        self._window = window_of(node)
        # A transposed convolution takes patches of its output and lays them at the places of its input.
        self._is_inputs_first = saved(node, "transposed")
        self._places = tuple(a.shape[2:] if self._is_inputs_first else output_of(node).shape[2:])
        self._a = self._by_example(self._flat(a) if self._is_inputs_first else self._patches(a), 0)

    def _patches(self, x: Tensor) -> Tensor:
        return patches(x, self._shape[2:], **self._window, places=self._places, groups=self._groups)

    def _flat(self, x: Tensor) -> Tensor:
        """Splits channels into groups: [B, C, *size] -> [B, g, places, C / g]."""
        return x.reshape(x.shape[0], self._groups, x.shape[1] // self._groups, -1).transpose(2, 3)

    def _by_example(self, x: Tensor, lead: int) -> Tensor:
        """Brings rows to examples: [*lead, B, g, places, f] -> [*lead, n, g, T, f]."""
        brought = self._layout.bring(x, lead)
        if self._layout.style == "axis":
            return brought
        # [*lead, n, blocks, g, places, f]
        moved = brought.transpose(lead + 1, lead + 2)
        return moved.reshape(*moved.shape[: lead + 2], -1, moved.shape[-1])

    def _cotangents(self, u: Tensor) -> Tensor:
        flat = u.reshape(-1, *u.shape[2:])
        made = self._patches(flat) if self._is_inputs_first else self._flat(flat)
        return self._by_example(made.view(*u.shape[:2], *made.shape[1:]), 1)


def lookup_indices(node: Node, places: tuple[int, ...]) -> Tensor:
    """Returns the indices that a node looks up, repeated to the shape ``places``."""
    indices: Tensor = saved(node, "indices")
    extra = max(0, indices.dim() - len(places))  # leading ones that a view took away
    return indices.reshape(indices.shape[extra:]).expand(places)


class EmbeddingUse(Use):
    """The weight [entries, features] of an embedding, z_t = W[index_t]; the layout is that of z.

    ``node``: where the rows are looked up. ``places``: z's shape without its last axis, along whose first axes the same rows
    may be repeated.
    """

    def __init__(
        self, node: Node, layout: Layout, weight_shape: tuple[int, ...], places: tuple[int, ...]
    ) -> None:
        self._layout, self._shape = layout, weight_shape
        brought = layout.bring(lookup_indices(node, places))
        self.indices = brought.reshape(brought.shape[0], -1)  # [n, T]
        self._learns = self.indices != signed(saved(node, "padding_idx"))

    @cached_property
    def _same(self) -> Tensor:
        """The pairs of places that share an entry that learns: bool [n, T, T]."""
        same = self.indices.unsqueeze(1) == self.indices.unsqueeze(2)
        return same & self._learns.unsqueeze(1)

    def products(self, u: Tensor, w: Tensor) -> Tensor:
        """Returns <gradient from u, gradient from w> of each example: [R, examples]."""
        of_u, of_w = (_rows(self._layout.bring(x, 1), 1) for x in (u, w))
        return ((of_u @ of_w.transpose(-1, -2)) * self._same).flatten(2).sum(2, dtype=torch.float64)

    def rows(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the entries of each example, [n, T], and cotangents, [R, n, T, features], 0 where an entry does not learn."""
        rows = _rows(self._layout.bring(u, 1), 1) * self._learns.unsqueeze(-1)
        return self.indices, rows

    def gradients(self, u: Tensor) -> Tensor:
        """Returns per-example gradients: [R, examples, *shape of W]."""
        indices, rows = self.rows(u)
        gradients = rows.new_zeros((*rows.shape[:2], *self._shape))
        index = indices.unsqueeze(-1).expand(rows.shape)
        return gradients.scatter_add_(2, index, rows)


class TiedUse(Use):
    """A matrix [entries, features] that is looked up and, transposed, multiplies the last activations: z = a W'.

    u, w: pairs of cotangents, at the product and at the lookup. The gradient of an example is sum_t u_t a_t', and rows u_t at
    the entries that were looked up, so that inner products of both kinds are sums over pairs of places: no gradient is formed.
    """

    def __init__(self, head: WeightUse, lookup: EmbeddingUse) -> None:
        self._head, self._lookup = head, lookup

    @classmethod
    def of(cls, uses: Sequence[Use]) -> tuple[TiedUse, int, int] | None:
        """Returns the use with the places of product and lookup among ``uses``; None where it is no such case, or no gain."""
        kinds = [type(use) for use in uses]
        if sorted(kinds, key=str) != [EmbeddingUse, WeightUse]:
            return None
        at = kinds.index(WeightUse), kinds.index(EmbeddingUse)
        head, lookup = uses[at[0]], uses[at[1]]
        assert isinstance(head, WeightUse)
        assert isinstance(lookup, EmbeddingUse)
        return (cls(head, lookup), *at) if head.goes_with(lookup) else None

    def pair_products(self, u: tuple[Tensor, Tensor], w: tuple[Tensor, Tensor]) -> Tensor:
        """Returns <gradient from u, gradient from w> of each example: [R, examples]."""
        own = self._head.products(u[0], w[0]) + self._lookup.products(u[1], w[1])
        cross = self._cross(u[0], w[1])
        return own + cross + (cross if u[0] is w[0] and u[1] is w[1] else self._cross(w[0], u[1]))

    def _cross(self, of_product: Tensor, of_lookup: Tensor) -> Tensor:
        """Sums u_t[entry of s] (a_t . w_s) over places t of the product and s of the lookup."""
        rows, a = self._head.rows(of_product), self._head.inputs
        indices, at_lookup = self._lookup.rows(of_lookup)
        wanted = indices.unsqueeze(1).expand(*rows.shape[:3], indices.shape[1])
        inner = a @ at_lookup.transpose(-1, -2)
        return (rows.gather(-1, wanted) * inner).flatten(2).sum(2, dtype=torch.float64)


def _rows(x: Tensor, lead: int) -> Tensor:
    """Merges the axes between: [*lead, n, ..., features] -> [*lead, n, T, features]."""
    return x.reshape(*x.shape[: lead + 1], -1, x.shape[-1])


class BroadcastUse(Use):
    """A broadcast parameter, z = factor x theta + ...: biases, scales and shifts of norms, slopes of PReLU.

    ``factor``: broadcastable to z; None for a sum. ``sizes``: theta's sizes along z's axes, 1 where it is broadcast.
    """

    def __init__(
        self, factor: Tensor | None, layout: Layout, *, sizes: list[int], shape: tuple[int, ...]
    ) -> None:
        self._factor, self._layout, self._shape = factor, layout, shape
        after = layout.bring_sizes(sizes)
        self._spread = [2 + axis for axis, size in enumerate(after) if size == 1]

    def gradients(self, u: Tensor) -> Tensor:
        """Returns per-example gradients: [R, examples, *shape of theta]."""
        if self._factor is not None:
            u = u * self._factor
        brought = self._layout.bring(u, 1)
        summed = brought.sum(self._spread) if self._spread else brought
        return summed.reshape(*brought.shape[:2], *self._shape)

    def products(self, u: Tensor, w: Tensor) -> Tensor:
        """Returns <gradient from u, gradient from w> of each example: [R, examples]."""
        of_u = self.gradients(u)
        of_u = of_u.reshape(*of_u.shape[:2], -1)
        of_w = of_u if u is w else self.gradients(w).reshape(of_u.shape)
        return row_products(of_u, of_w)

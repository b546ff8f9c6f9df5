"""Places where a parameter multiplies something, z = B(theta) a, and what a direction of theta for each example does there.

Along theta + t V_n the output of example n gains t V_n a_n, and the cotangent of its input gains t V_n' delta_n. Both are made
without the matrices V_n: these are r_n o V o s_n with one matrix V of random signs and random signs r_n, s_n of the rows and
columns, and V_n a_n = r_n o V (s_n o a_n) is one matrix product for all examples. Any four entries of V_n whose product is not
that of squares have mean zero, and so have products of entries of V_n and V_m: sums over examples add up their variances.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from metacurv.estimators.activation.batch_layout import Layout
from metacurv.estimators.activation.per_sample_products import patches
from metacurv.estimators.activation.uses import lookup_indices, window_of
from metacurv.estimators.graph.sites import Site
from metacurv.estimators.graph.torch_private import saved, signed
from metacurv.estimators.graph.walk import Walk


class Direction(NamedTuple):
    """A direction of a parameter for each example.

    For a matrix [o, i], ``shared`` is V [o, i], ``rows`` are [N, o] and ``columns`` [N, i]; a vector [f] has ``rows`` [N, f]
    alone.
    """

    rows: Tensor
    shared: Tensor | None = None
    columns: Tensor | None = None


def scaled(x: Tensor, signs: Tensor, layout: Layout) -> Tensor:
    """Multiplies the features of each example, along the last axis of x [..., f], by its signs [N, f]."""
    if layout.style == "axis":
        sizes = [1] * x.dim()
        sizes[layout.axis], sizes[-1] = signs.shape
        return x * signs.view(sizes)
    rows, rest = x.shape[0] // layout.examples, x.shape[1:]
    front = (layout.examples, rows) if layout.style == "major" else (rows, layout.examples)
    sizes = [1] * (x.dim() + 1)
    sizes[0 if layout.style == "major" else 1], sizes[-1] = signs.shape
    return (x.view(*front, *rest) * signs.view(sizes)).view(x.shape)


class Place:
    """A place with a direction for each example; ``edge`` is its input's (node, output), None where it hangs on nothing."""

    edge: tuple[int, int] | None = None

    def __init__(self, site: Site, walk: Walk, layout: Layout) -> None:
        self.node, self.layout = site.node, layout

    def output(self, direction: Direction) -> Tensor:
        """Returns V_n a_n of all examples, of the shape of z."""
        raise NotImplementedError

    def input(self, direction: Direction, delta: Tensor) -> Tensor:
        """Returns V_n' delta_n, of the shape of ``root``; delta: the loss's gradient in z."""
        raise NotImplementedError

    def root(self) -> Tensor:
        """Returns a, with its graph."""
        raise NotImplementedError

    def tangent(self, below: Tensor) -> Tensor:
        """Returns how ``root`` moves where what arrives at ``edge`` moves by ``below``."""
        return below


class Weight(Place):
    """A matrix, z = a W' or z = a W."""

    def __init__(self, site: Site, walk: Walk, layout: Layout) -> None:
        super().__init__(site, walk, layout)
        self._a = walk.layer_input(site.node)
        self._detached = self._a.detach()
        self._is_transposed = site.is_transposed
        edge = walk.inputs[site.node][1 if walk.names[site.node] == "AddmmBackward0" else 0]
        self.edge = edge if edge[0] >= 0 else None

    def _sides(self, direction: Direction) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the signs of z's features, the matrix [in, out], and the signs of a's features."""
        rows, matrix, columns = direction
        assert matrix is not None
        assert columns is not None
        rows, matrix, columns = (x.to(self._detached.dtype) for x in (rows, matrix, columns))
        return (rows, matrix.t(), columns) if self._is_transposed else (columns, matrix, rows)

    def output(self, direction: Direction) -> Tensor:
        """Returns V_n a_n."""
        after, matrix, before = self._sides(direction)
        return scaled(scaled(self._detached, before, self.layout) @ matrix, after, self.layout)

    def input(self, direction: Direction, delta: Tensor) -> Tensor:
        """Returns V_n' delta_n."""
        after, matrix, before = self._sides(direction)
        return scaled(scaled(delta, after, self.layout) @ matrix.t(), before, self.layout)

    def root(self) -> Tensor:
        """Returns a."""
        return self._a


class Convolution(Place):
    """The weight of a convolution in one group: a matrix [out, in x kernel], which multiplies patches [B, places, features]."""

    def __init__(self, site: Site, walk: Walk, layout: Layout) -> None:
        super().__init__(site, walk, layout)
        node = walk.nodes[site.node]
        self._shape = walk.shape(site.node)
        self._x: Tensor = saved(node, "input")
        self._window, self._kernel = window_of(node), tuple(saved(node, "weight").shape[2:])
        self._a = self._patches(self._x.detach())
        edge = walk.inputs[site.node][0]
        self.edge = edge if edge[0] >= 0 else None

    def _patches(self, x: Tensor) -> Tensor:
        places = tuple(self._shape[2:])
        return patches(x, self._kernel, **self._window, places=places, groups=1)[:, 0]

    def output(self, direction: Direction) -> Tensor:
        """Returns V_n a_n."""
        rows, matrix, columns = direction
        assert matrix is not None
        assert columns is not None
        z = scaled(self._a, columns, self.layout) @ matrix.t()
        return scaled(z, rows, self.layout).transpose(1, 2).reshape(self._shape)

    def input(self, direction: Direction, delta: Tensor) -> Tensor:
        """Returns V_n' delta_n."""
        rows, matrix, columns = direction
        assert matrix is not None
        assert columns is not None
        flat = scaled(delta.flatten(2).transpose(1, 2), rows, self.layout)
        return scaled(flat @ matrix, columns, self.layout)

    def root(self) -> Tensor:
        """Returns a."""
        with torch.enable_grad():
            return self._patches(self._x)

    def tangent(self, below: Tensor) -> Tensor:
        """Returns the patches of what moves."""
        return self._patches(below)


class Embedding(Place):
    """A table whose rows are looked up, z_t = W[index_t]: linear in W, and nothing else enters."""

    def __init__(self, site: Site, walk: Walk, layout: Layout) -> None:
        super().__init__(site, walk, layout)
        lookup = walk.nodes[site.lookup]
        self._indices = lookup_indices(lookup, walk.shape(site.node)[:-1])
        padding = signed(saved(lookup, "padding_idx"))
        self._learns = (self._indices != padding).unsqueeze(-1)

    def output(self, direction: Direction) -> Tensor:
        """Returns V_n a_n."""
        rows, matrix, columns = direction
        assert matrix is not None
        assert columns is not None
        entries = self.layout.bring(self._indices)
        signs = rows.gather(1, entries.reshape(len(rows), -1)).view(entries.shape)
        if self.layout.style == "axis":
            signs = signs.movedim(0, self.layout.axis)
        elif self.layout.style == "minor":
            signs = signs.transpose(0, 1)
        signs = signs.reshape(self._indices.shape).unsqueeze(-1)
        return scaled(matrix[self._indices], columns, self.layout) * (signs * self._learns)


class Shift(Place):
    """A tensor that is added: a bias along the last axis of z, or positions along all axes but the examples'."""

    def __init__(self, site: Site, walk: Walk, layout: Layout) -> None:
        super().__init__(site, walk, layout)
        self._shape, self._sizes = walk.shape(site.node), site.sizes(walk)

    def output(self, direction: Direction) -> Tensor:
        """Returns V_n a_n."""
        rows = direction.rows
        if self.layout.style == "axis":
            axis = self.layout.axis
            sizes = self.layout.bring_sizes(self._sizes)
            return rows.view(len(rows), *sizes).movedim(0, axis).expand(self._shape)
        return scaled(rows.new_ones(()).expand(self._shape), rows, self.layout)


class Scale(Place):
    """A vector that multiplies what else enters, along the last axis of z."""

    def __init__(self, site: Site, walk: Walk, layout: Layout) -> None:
        super().__init__(site, walk, layout)
        self._a: Tensor = saved(walk.nodes[site.node], "other" if site.position == 0 else "self")
        self._detached = self._a.detach()
        edge = walk.inputs[site.node][1 - site.position]
        self.edge = edge if edge[0] >= 0 else None

    def output(self, direction: Direction) -> Tensor:
        """Returns V_n a_n."""
        return scaled(self._detached, direction.rows, self.layout)

    def input(self, direction: Direction, delta: Tensor) -> Tensor:
        """Returns V_n' delta_n."""
        return scaled(delta, direction.rows, self.layout)

    def root(self) -> Tensor:
        """Returns a."""
        return self._a


class NormScale(Place):
    """The scale of a layer norm over the last axis: a is the normalised input."""

    def __init__(self, site: Site, walk: Walk, layout: Layout) -> None:
        super().__init__(site, walk, layout)
        node = walk.nodes[site.node]
        self._x: Tensor = saved(node, "input")
        self._by: Tensor = saved(node, "result2")
        self._a = (self._x.detach() - saved(node, "result1")) * self._by
        edge = walk.inputs[site.node][0]
        self.edge = edge if edge[0] >= 0 else None

    def output(self, direction: Direction) -> Tensor:
        """Returns V_n a_n."""
        return scaled(self._a, direction.rows, self.layout)

    def input(self, direction: Direction, delta: Tensor) -> Tensor:
        """Returns V_n' delta_n, through the norm, since ``root`` lies below it."""
        return self._through(scaled(delta, direction.rows, self.layout))

    def root(self) -> Tensor:
        """Returns the norm's input."""
        return self._x

    def _through(self, below: Tensor) -> Tensor:
        """Applies da / dx, which is symmetric."""
        mean = below.mean(-1, keepdim=True)
        along = (below * self._a).mean(-1, keepdim=True)
        moved: Tensor = (below - mean - self._a * along) * self._by
        return moved


def make_place(site: Site, walk: Walk, layout: Layout) -> Place | None:
    """Returns the place of a site; None where no direction for each example is made."""
    if layout.style == "whole":
        return None
    if site.role == "weight":
        return Weight(site, walk, layout)
    if site.role == "embedding":
        return Embedding(site, walk, layout)
    if site.role == "convolution":
        node = walk.nodes[site.node]
        is_plain = not saved(node, "transposed") and saved(node, "groups") == 1
        return Convolution(site, walk, layout) if is_plain else None
    name, node = walk.names[site.node], walk.nodes[site.node]
    sizes = site.sizes(walk)
    is_along_last = len(sizes) > 1 and all(size == 1 for size in sizes[:-1])
    is_elsewhere = layout.style == "axis" and layout.axis == len(sizes) - 1
    if name in ("AddmmBackward0", "ConvolutionBackward0", "ExpandBackward0") or (
        name == "AddBackward0" and (site.position == 0 or saved(node, "alpha") == 1)
    ):
        return Shift(site, walk, layout) if is_along_last or layout.style == "axis" else None
    if not is_along_last or is_elsewhere:
        return None
    if name == "NativeLayerNormBackward0" and len(saved(node, "normalized_shape")) == 1:
        return (NormScale if site.position == 1 else Shift)(site, walk, layout)
    if name == "MulBackward0":
        factor = saved(node, "other" if site.position == 0 else "self")
        is_full = isinstance(factor, Tensor) and tuple(factor.shape) == walk.shape(site.node)
        return Scale(site, walk, layout) if is_full else None
    return None

"""Gradients from the columns of the loss's factor: their inner products and squares, formed from factors where that is cheaper.

A column c of example n gives the gradient s_nc = J_n' u_nc, and the Gauss-Newton matrix is the sum of s s' over all of them. A
linear layer that example n goes through once has the part u_nc a_n' of it, so that inner products and squares are products of
small matrices:

    <s_nc, s_md> = (a_n . a_m + 1) (u_nc . u_md),      diagonal: sum_n a_n^2 (sum_c u_nc^2)'

Source: Dangel, Tatzel, Hennig 2022, "ViViT: curvature access through the generalized Gauss-Newton's low-rank structure",
section 2 (the Gram matrix); Dangel, Kunstner, Hennig 2020, "BackPACK", section 2.3 (the diagonal).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from metacurv.estimators.activation.bind import bind
from metacurv.estimators.activation.parts import PartPlan, summed_gradients
from metacurv.estimators.activation.pull_by_engine import Cotangents
from metacurv.estimators.activation.uses import Use
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.numerics import wide
from metacurv.estimators.problem.parameters import NumberedParameter


class PartGradients:
    """The gradients that a set of cotangents gives the parameters of one part.

    ``parameters``: their indices. Rows are numbered with the examples within each cotangent, [R x examples].
    """

    parameters: tuple[int, ...]

    def norms(self, wanted: Collection[int]) -> Tensor:
        """Returns the squared norm of each row, over its parameters of the indices ``wanted``, at least one."""
        raise NotImplementedError

    def add_gram(
        self,
        total: Tensor,
        rows: Tensor,
        other: PartGradients,
        others: Tensor,
        wanted: Collection[int],
    ) -> None:
        """Adds the inner products of some rows with some of the same part in another batch.

        Args:
            total: what they are added to, [rows, others].
            rows: the numbers of the rows, rising.
            other: the same part in another batch.
            others: the numbers of its rows, rising.
            wanted: the indices of the parameters that count.
        """
        raise NotImplementedError

    def products(self, other: PartGradients) -> dict[int, Tensor]:
        """Returns the sum over rows of elementwise products with the rows of ``other``, by parameter, of its shape."""
        raise NotImplementedError


class LayerGradients(PartGradients):
    """Holds the gradients of a linear layer that each example goes through once.

    a: its inputs [n, in]; u: cotangents [R, n, out]. The first of ``parameters`` is the weight [out, in] ([in, out] where
    ``is_transposed`` is False), the second, where there is one, the bias.
    """

    def __init__(
        self, parameters: tuple[int, ...], a: Tensor, u: Tensor, *, is_transposed: bool
    ) -> None:
        self.parameters = parameters
        self._a, self._u, self._is_transposed = a, u, is_transposed

    def norms(self, wanted: Collection[int]) -> Tensor:
        """Multiplies the norms of inputs and cotangents."""
        has_bias = len(self.parameters) > 1 and self.parameters[1] in wanted
        of_weight = self._a.square().sum(1) * float(self.parameters[0] in wanted)
        return (self._u.square().sum(2) * (of_weight + float(has_bias))).flatten()

    def add_gram(
        self,
        total: Tensor,
        rows: Tensor,
        other: PartGradients,
        others: Tensor,
        wanted: Collection[int],
    ) -> None:
        """Multiplies the Gram matrices of inputs and cotangents, element by element."""
        assert isinstance(other, LayerGradients)
        left, right = self._u.flatten(0, 1)[rows], other._u.flatten(0, 1)[others]
        has_bias = len(self.parameters) > 1 and self.parameters[1] in wanted
        if self.parameters[0] not in wanted:
            total.addmm_(left, right.t())
            return
        of_a = self._a @ other._a.t()
        if has_bias:
            of_a += 1
        factors = of_a[rows % len(self._a)][:, others % len(other._a)]
        total.addcmul_(left @ right.t(), factors)

    def products(self, other: PartGradients) -> dict[int, Tensor]:
        """Multiplies squared inputs and the sums of products of cotangents."""
        assert isinstance(other, LayerGradients)
        of_u = (self._u * other._u).sum(0)
        squares = self._a.square()
        weight = of_u.t() @ squares if self._is_transposed else squares.t() @ of_u
        return dict(zip(self.parameters, (weight, of_u.sum(0)), strict=False))

    def formed(self, max_memory: int) -> list[PartGradients]:
        """Returns the gradients added up over the examples, by parameter."""

        def weight(start: int, stop: int) -> Tensor:
            found = self._u[start:stop].transpose(1, 2) @ self._a
            return (found if self._is_transposed else found.transpose(1, 2)).unsqueeze(1)

        def bias(start: int, stop: int) -> Tensor:
            return self._u[start:stop].sum(1, keepdim=True)

        sizes = self._u.shape[-1] * self._a.shape[-1], self._u.shape[-1]
        return [
            FormedGradients(parameter, form, len(self._u), size, max_memory)
            for parameter, form, size in zip(self.parameters, (weight, bias), sizes, strict=False)
        ]


class FormedGradients(PartGradients):
    """Gradients that are formed, so many cotangents at a time as fit into ``max_memory``.

    form: maps a range of cotangents to their gradients [R, examples, *shape].
    """

    def __init__(
        self,
        parameter: int,
        form: Callable[[int, int], Tensor],
        count: int,
        elements: int,
        max_memory: int,
    ) -> None:
        self.parameters = (parameter,)
        self._form, self._count = form, count
        self._at_once = max(1, max_memory // max(1, 16 * elements))

    def _chunks(self) -> Iterator[Tensor]:
        for start in range(0, self._count, self._at_once):
            yield self._form(start, min(start + self._at_once, self._count))

    def norms(self, wanted: Collection[int]) -> Tensor:
        """Adds up squares."""
        return torch.cat([_rows(gradients).square().sum(1) for gradients in self._chunks()])

    def add_gram(
        self,
        total: Tensor,
        rows: Tensor,
        other: PartGradients,
        others: Tensor,
        wanted: Collection[int],
    ) -> None:
        """Multiplies chunks with chunks."""
        assert isinstance(other, FormedGradients)
        for place, left in self._chosen(rows):
            for other_place, right in other._chosen(others):
                total[place, other_place].addmm_(left, right.t())

    def _chosen(self, rows: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yields the gradients of some rows, [some of them, elements], with their places among these."""
        first = begin = 0
        for gradients in self._chunks():
            flat = _rows(gradients)
            end = int(torch.searchsorted(rows, first + len(flat)))
            if end > begin:
                yield slice(begin, end), flat[rows[begin:end] - first]
            first, begin = first + len(flat), end

    def products(self, other: PartGradients) -> dict[int, Tensor]:
        """Sums products over chunks."""
        assert isinstance(other, FormedGradients)
        total: Tensor | None = None
        for of_u, of_w in zip(self._chunks(), other._chunks(), strict=True):
            found = (of_u * of_w).flatten(0, 1).sum(0)
            total = found if total is None else total + found
        assert total is not None  # there is a column
        return {self.parameters[0]: total}


def column_gradients(
    walk: Walk,
    plans: Sequence[PartPlan],
    nodes: Sequence[int],
    parameters: Sequence[NumberedParameter],
    cotangents: Cotangents,
    max_memory: int,
    *,
    whole: bool = False,
) -> list[PartGradients]:
    """Returns the gradients of each part of a plan; parts that no path leads to are left out.

    Args:
        walk: the walk over the graph.
        plans: the plans of all parts.
        nodes: the nodes at which the cotangents are, as many as there are sites' nodes; those of indirect parameters follow.
        parameters: all that are measured.
        cotangents: at each of the nodes [R, *its shape].
        max_memory: bytes that formed gradients may take at a time.
        whole: True to add up the gradients of the examples, as where a cotangent is that of one column of the whole batch.
    """
    slots = {node: slot for slot, node in enumerate(nodes)}
    indirect = itertools.count(len(slots))
    found: list[PartGradients] = []
    for plan in plans:
        if plan.layer is not None:
            u = cotangents[slots[plan.layer]]
            if u is not None:
                a = wide(walk.layer_input(plan.layer)).detach()
                layer = LayerGradients(
                    plan.parameters, a, wide(u), is_transposed=plan.is_transposed
                )
                found += layer.formed(max_memory) if whole else [layer]
            continue
        (parameter,) = plan.parameters
        tensor = parameters[parameter].tensor
        if plan.sites:
            places = [
                (cotangents[slots[site.node]], bind(site, walk, layout, tensor))
                for site, layout in plan.sites
            ]
            uses = [(u, use) for u, use in places if u is not None]
            if uses:
                form, count = partial(_summed, uses, whole), len(uses[0][0])
                elements = form(0, 1).shape[1] * tensor.numel()
                found.append(FormedGradients(parameter, form, count, elements, max_memory))
            continue
        g = cotangents[next(indirect)]
        if g is not None:
            found.append(
                FormedGradients(parameter, partial(_whole, g), len(g), tensor.numel(), max_memory)
            )
    return found


def _rows(gradients: Tensor) -> Tensor:
    """Reshapes [R, examples, *shape] to [R x examples, elements]."""
    return gradients.reshape(gradients.shape[0] * gradients.shape[1], -1)


def _summed(uses: Sequence[tuple[Tensor, Use]], whole: bool, start: int, stop: int) -> Tensor:
    gradients = summed_gradients([(u[start:stop], use) for u, use in uses])
    return gradients.sum(1, keepdim=True) if whole else gradients


def _whole(gradients: Tensor, start: int, stop: int) -> Tensor:
    return wide(gradients[start:stop]).unsqueeze(1)

"""One batch's model and loss in activation space: cotangents in, random or exact; parts of the trace out.

For a layer z = f(a; theta) linear in theta, the diagonal block of the Hessian in theta is J' (d^2 l / dz^2) J, and any pair
of random cotangents with E[u w'] = d^2 l / dz^2 gives its trace as E[sum_n <grad from u_n, grad from w_n>]. Such pairs start
at the output (``loss_factor``) and go down by plain backward passes. For the Hessian, each smooth elementwise activation
a = s(z) adds its share: with c = s''(z) dl/da and a fresh random sign e, u gains e sqrt|c| and w gains e sgn(c) sqrt|c| at z.

Where examples of the batch interact, or cannot be told apart, all count as one: still right on average, with more noise.

Sources: docs/concepts/estimators.md has the argument; Dangel et al. 2020, "Modular block-diagonal curvature
approximations", and Botev, Ritter, Barber 2017, "Practical Gauss-Newton optimisation for deep learning", the recursions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from metacurv.estimators.activation.column_gradients import PartGradients, column_gradients
from metacurv.estimators.activation.examine import Examined
from metacurv.estimators.activation.loss_factor import (
    DiagonalFactor,
    GenericFactor,
    OutputFactor,
    Signs,
    SoftmaxFactor,
    diagonal_of,
)
from metacurv.estimators.activation.parts import Parts
from metacurv.estimators.activation.plan import ActivationPlan, Head, softmax_dim
from metacurv.estimators.activation.pull_by_engine import Bends, Cotangents, pull_by_engine
from metacurv.estimators.activation.pull_many import ReplicatedPull
from metacurv.estimators.graph.derivatives import pulled_back, second_derivative
from metacurv.estimators.graph.node_kinds import NLL_LOSS
from metacurv.estimators.graph.torch_private import output_of, run_backward, saved
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.batches import how_many
from metacurv.estimators.problem.parameters import NumberedParameter
from metacurv.ops._reference import OpSet


def make_factor(loss: Tensor, walk: Walk, plan: ActivationPlan, examples: int) -> OutputFactor:
    """Returns the factor of H_out at the boundary of this very graph."""
    head = plan.head
    if head.kind == "softmax":
        dim = softmax_dim(walk, head.node)
        weight = _mean_nll_weight(walk, plan)
        is_definite = weight is not None
        if weight is None:
            (gradient,) = run_backward([loss], [walk.edge(head.node)], [torch.ones_like(loss)])
            assert gradient is not None  # the head was found below the loss
            weight = -gradient.sum(dim)
        log_p = saved(walk.nodes[head.node], "result").detach()
        return SoftmaxFactor(log_p, dim, weight, examples, is_definite=is_definite)
    node, output = head.boundary
    metadata = output_of(walk.nodes[node], output)
    like = torch.empty(tuple(metadata.shape), dtype=metadata.dtype, device=metadata.device)
    edge = walk.edge(node, output)
    if head.kind == "diagonal":
        return DiagonalFactor(diagonal_of(loss, edge, like), examples)
    return GenericFactor(loss, edge, like, examples, walk.again)


def _mean_nll_weight(walk: Walk, plan: ActivationPlan) -> Tensor | None:
    """Returns what a backward pass would give for plain cross-entropy, 1 / N for each target that counts; else None."""
    if walk.names[0] != NLL_LOSS or walk.inputs[0][0][0] != plan.head.node:
        return None
    if softmax_dim(walk, plan.head.node) % len(walk.shape(plan.head.node)) != 1:
        return None
    top = walk.nodes[0]
    target: Tensor = saved(top, "target")
    if saved(top, "weight") is not None or saved(top, "reduction") != 1 or target.dim() != 1:
        return None
    weight: Tensor = (target != saved(top, "ignore_index")) / saved(top, "total_weight")
    return weight


class ActivationSpace:
    """A plan bound to one forward pass, with the walk over the graph of its loss.

    ``examples`` is the number of examples that may share a column of the factor, ``kind`` is "hessian" or "ggn", and
    ``max_memory`` are the bytes for cotangents that are pulled at once. ``apart`` is the number of examples that samples tell
    apart, 1 where they cannot be told.
    """

    def __init__(
        self,
        loss: Tensor,
        walk: Walk,
        examined: Examined,
        parameters: Sequence[NumberedParameter],
        examples: int,
        kind: str,
        run: OpSet,
        max_memory: int,
    ) -> None:
        plan = examined.plan
        self.parameters = list(parameters)
        self.device = parameters[0].tensor.device
        self._walk, self._plan, self._run = walk, plan, run
        self.examples = examples
        self.apart = examined.boundary.examples
        self.factor = make_factor(loss, walk, plan, examples)
        node, output = plan.head.boundary
        self._dtype = output_of(walk.nodes[node], output).dtype
        nodes = plan.site_nodes
        self._steps = examined.pull
        self._pull: Callable[[Tensor, Bends], Cotangents]
        if examined.pull is None:
            indirect = [parameters[index].tensor for index in plan.indirect]
            inputs = [*(walk.edge(node) for node in nodes), *indirect]
            self._pull = partial(pull_by_engine, walk, plan.head.boundary, inputs)
        else:
            self._pull = ReplicatedPull(walk, examined.pull, nodes)
        self._parts = Parts(walk, examined.part_plans, nodes, parameters)
        self._part_plans, self._nodes, self._max_memory = examined.part_plans, nodes, max_memory
        self._bends = self._curvatures(loss) if kind == "hessian" and plan.smooth else {}
        self.column_count = self.factor.columns_per_sample
        # Bytes of a cotangent at the boundary and all sites, and as much again for products made of it.
        size = 2 * examined.elements * max(4, int(self._dtype.itemsize))
        self.at_once = how_many(size, max_memory)

    def _curvatures(self, loss: Tensor) -> dict[tuple[int, int], Tensor]:
        """Returns c = s''(z) dl/da of every smooth activation, by the (node, output) of z."""
        nodes = list(self._plan.smooth)
        found: dict[tuple[int, int], Tensor] = {}
        if self._steps is None:
            edges = [self._walk.edge(node) for node in nodes]
            cotangents = run_backward([loss], edges, [torch.ones_like(loss)])
        else:  # by the same rules as all that follows, which see no hooks
            gradient = _gradient_at(loss, self._walk, self._plan.head)
            pulled = ReplicatedPull(self._walk, self._steps, nodes)(gradient.unsqueeze(0), {})
            cotangents = [None if g is None else g[0] for g in pulled]
        for node, cotangent in zip(nodes, cotangents, strict=True):
            if cotangent is None:
                continue
            below = self._plan.smooth[node]
            c = second_derivative(self._walk.nodes[node], cotangent, self._walk.edge(*below))
            if c is not None:
                found[below] = found[below] + c if below in found else c
        return found

    def draw(self, key: int, first_probe: int, n_samples: int) -> Tensor:
        """Returns samples of each parameter's trace, float64 [n_samples, parameters], from probes ``first_probe`` on.

        Signs at the output take parameter number 0, those of the smooth activations 1, 2, ...
        """
        parts = [
            self._draw(key, (first_probe + start) % (1 << 32), min(self.at_once, n_samples - start))
            for start in range(0, n_samples, self.at_once)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _draw(self, key: int, first_probe: int, k: int) -> Tensor:
        return self.products(*self._cotangents(key, first_probe, k))

    def draw_rows(self, key: int, first_probe: int, n_samples: int) -> Tensor:
        """Returns the samples of ``draw`` by example, float64 [n_samples, 1 + apart, parameters]; row 0: what they share."""
        found = []
        for start in range(0, n_samples, self.at_once):
            first = (first_probe + start) % (1 << 32)
            k = min(self.at_once, n_samples - start)
            pulled = self._pulled(*self._cotangents(key, first, k))
            found.append(self._parts.rows(*pulled, self.apart))
        return found[0] if len(found) == 1 else torch.cat(found)

    def _cotangents(
        self, key: int, first_probe: int, k: int
    ) -> tuple[Tensor, Tensor, Bends, Bends]:
        """Returns the random cotangents of ``k`` samples, at the output and at the smooth activations."""
        signs = Signs(self._run, key, first_probe, k)
        u, w = self.factor.draw(signs)
        bends_u, bends_w = {}, {}
        for number, (place, c) in enumerate(self._bends.items(), start=1):
            bends_u[place] = signs.like(c, number).mul_(c.abs().sqrt()).to(c.dtype)
            bends_w[place] = bends_u[place] * c.sign()
        return u, w, bends_u, bends_w

    def draw_diagonal(self, key: int, probe: int) -> dict[int, Tensor]:
        """Returns a sample of each parameter's diagonal, of the parameter's number of elements, by its index."""
        u, w, bends_u, bends_w = self._cotangents(key, probe, 1)
        of_u = self._gradients(u, bends_u)
        of_w = of_u if u is w and not bends_u else self._gradients(w, bends_w)
        return _products(of_u, of_w)

    def column_diagonal(self, start: int, stop: int) -> dict[int, Tensor]:
        """Returns the share of columns ``start`` ... ``stop - 1`` in each parameter's diagonal, by the parameter's index."""
        u, w = self.factor.columns(start, stop)
        of_u = self._gradients(u, {})
        return _products(of_u, of_u if self.factor.is_definite else self._gradients(w, {}))

    def columns(self, start: int, stop: int) -> Tensor:
        """Returns the share of the factor's columns ``start`` ... ``stop - 1``, float64 [parameters]."""
        u, w = self.factor.columns(start, stop)
        return self.products(u, u if self.factor.is_definite else w, {}, {}).sum(0)

    def gradients(self, u: Tensor) -> list[PartGradients]:
        """Returns the gradients that columns u [R, *boundary] give each part, a row for each of ``examples``."""
        pieces = [self._pull(some.to(self._dtype), {}) for some in torch.split(u, self.at_once)]
        pulled = [_joined(found) for found in zip(*pieces, strict=True)]
        return self._by_part(pulled, whole=self.examples == 1)

    def _gradients(self, u: Tensor, bends: Bends) -> list[PartGradients]:
        return self._by_part(self._pull(u.to(self._dtype), bends))

    def _by_part(self, pulled: Cotangents, *, whole: bool = False) -> list[PartGradients]:
        return column_gradients(
            self._walk,
            self._part_plans,
            self._nodes,
            self.parameters,
            pulled,
            self._max_memory,
            whole=whole,
        )

    def pull_back(self, cotangent: Tensor) -> Sequence[Tensor | None]:
        """Returns the gradient that a cotangent [*boundary] gives each parameter."""
        edge = self._walk.edge(*self._plan.head.boundary)
        tensors = [p.tensor for p in self.parameters]
        return run_backward([edge], tensors, [cotangent.to(self._dtype)])

    def products(self, u: Tensor, w: Tensor, bends_u: Bends, bends_w: Bends) -> Tensor:
        """Sums <gradient from u, gradient from w> over examples: float64 [R, parameters]; u, w: [R, *boundary]."""
        return self._parts.table(*self._pulled(u, w, bends_u, bends_w))

    def _pulled(
        self, u: Tensor, w: Tensor, bends_u: Bends, bends_w: Bends
    ) -> tuple[Cotangents, Cotangents]:
        of_u = self._pull(u.to(self._dtype), bends_u)
        return of_u, of_u if u is w and not bends_u else self._pull(w.to(self._dtype), bends_w)


def _products(of_u: Sequence[PartGradients], of_w: Sequence[PartGradients]) -> dict[int, Tensor]:
    """Returns the sums over examples of elementwise products, by parameter; without those that one side does not reach."""
    others = {part.parameters: part for part in of_w}
    found: dict[int, Tensor] = {}
    for part in of_u:
        if part.parameters in others:
            found.update(part.products(others[part.parameters]))
    return found


def _joined(found: Sequence[Tensor | None]) -> Tensor | None:
    tensors = [x for x in found if x is not None]
    return torch.cat(tensors) if len(tensors) > 1 else (tensors[0] if tensors else None)


def _gradient_at(loss: Tensor, walk: Walk, head: Head) -> Tensor:
    """Returns the gradient of the loss at the boundary."""
    is_generic = head.node < 0
    edge = walk.edge(*head.boundary) if is_generic else walk.edge(head.node)
    (gradient,) = run_backward([loss], [edge], [torch.ones_like(loss)])
    assert gradient is not None  # it was found below the loss
    return gradient if is_generic else pulled_back(walk.nodes[head.node], gradient)

"""The plan for measuring a model in activation space, made once from the graph of its loss and kept for graphs like it.

The graph says what really ran, so weight sharing, functional calls and parametrizations are seen and not guessed:

    head        the part between the model's output and the loss, and which factor serves it
    sites       the places where each parameter enters; parameters that enter in an unknown way are listed as ``indirect``
    smooth      elementwise operations with a second derivative, where the Hessian needs signs added
    obstacle    why the Hessian cannot be had in activation space, if so
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from metacurv.estimators.graph.node_kinds import (
    BATCH_NORMS,
    ELEMENTWISE_LOSSES,
    HOOK,
    LOG_SOFTMAX,
    LOSSES_OF_LOG_P,
    kind_of,
)
from metacurv.estimators.graph.sites import Site, find_sites
from metacurv.estimators.graph.torch_private import ACCUMULATE, saved, signed
from metacurv.estimators.graph.walk import Walk
from metacurv.estimators.problem.parameters import NumberedParameter

_GOES_AROUND = "the loss depends on parameters otherwise than through the model's output"


class NotInActivationSpace(Exception):
    """Raised where activation space does not serve a model; the message is the reason."""


@dataclass(frozen=True)
class Head:
    """The part of the graph between the model's output and the loss.

    ``kind`` names the factor that serves it. ``node`` is the log softmax or the elementwise loss, -1 for a generic head.
    ``boundary`` is the (node, output) where gradients in the model's output arrive.
    """

    kind: str
    node: int
    boundary: tuple[int, int]


@dataclass(frozen=True)
class ActivationPlan:
    """A plan, as the module's text lists its parts. Numbers are those of nodes in a ``Walk``, or indices of parameters.

    ``smooth`` maps each node to the (node, output) of its input.
    """

    head: Head
    sites: dict[int, list[Site]]
    indirect: list[int]
    smooth: dict[int, tuple[int, int]]
    obstacle: str | None

    @cached_property
    def site_nodes(self) -> list[int]:
        """The nodes of all sites, each once."""
        return list(dict.fromkeys(site.node for site in self.all_sites))

    @cached_property
    def all_sites(self) -> list[Site]:
        """The sites of all parameters."""
        return [site for sites in self.sites.values() for site in sites]


def make_plan(
    walk: Walk,
    parameters: Sequence[NumberedParameter],
    output: tuple[int, int] | None,
    kind: str,
) -> ActivationPlan:
    """Makes the plan from the whole graph.

    ``output`` is the (node, output) of the model's output, where the Gauss-Newton matrix (``kind`` "ggn") ends; None where it
    is not known, which does no harm to the Hessian under a known loss.

    Raises:
        NotInActivationSpace: the loss sees parameters otherwise than through the output, or a batch norm uses batch statistics.
    """
    reach = _parameters_below(walk)
    live = {index for index, mask in enumerate(reach) if mask}
    # Instance norm runs the same kernel over [1, N C, ...].
    if any(
        walk.names[index] in BATCH_NORMS
        and walk.shape(index)[:1] != (1,)
        and saved(walk.nodes[index], "training")
        for index in live
    ):
        raise NotInActivationSpace(
            "a batch norm in train mode makes the samples of a batch interact; call model.eval(), or use "
            "method='hutchinson' for the batch as it is"
        )
    head = _find_head(walk, live, output, kind)
    body = walk.below(head.boundary[0])
    found = find_sites(walk, parameters)
    sites = {parameter: known for parameter, known in found.items() if known}
    indirect = [parameter for parameter, known in found.items() if known is None]
    if any(site.node not in body for known in sites.values() for site in known):
        raise NotInActivationSpace(_GOES_AROUND)
    # Sites at which nothing else that enters depends on the same parameter: only there is the operation linear in it, which a
    # layer is not whose input has gone through the same weight.
    linear_in = {
        (site.node, site.position)
        for known in sites.values()
        for site in known
        if not any(
            below >= 0 and position != site.position and reach[below] >> site.parameter & 1
            for position, (below, _) in enumerate(walk.inputs[site.node])
        )
    }
    smooth, obstacle = _bends(walk, body & live, linear_in)
    return ActivationPlan(head, sites, indirect, smooth, obstacle)


def softmax_dim(walk: Walk, node: int) -> int:
    """Returns the axis of a log softmax along which the classes lie."""
    return signed(saved(walk.nodes[node], "dim"))


def _parameters_below(walk: Walk) -> list[int]:
    """Returns for each node the parameters it depends on, as bits."""
    masks = [0] * len(walk.nodes)
    for node in reversed(walk.order):
        if node in walk.leaves:
            masks[node] = 1 << walk.leaves[node]
        for below, _ in walk.inputs[node]:
            if below >= 0:
                masks[node] |= masks[below]
    return masks


def _live(walk: Walk, node: int, live: set[int]) -> list[int]:
    return [position for position, (below, _) in enumerate(walk.inputs[node]) if below in live]


def _find_head(walk: Walk, live: set[int], output: tuple[int, int] | None, kind: str) -> Head:
    """Returns a known loss as the head, if it begins where the model ends; else a generic head at the output."""
    if output is None and kind == "ggn":
        raise NotInActivationSpace(
            "the Gauss-Newton matrix needs a model whose output is one tensor in the loss's graph"
        )
    known = _known_head(walk, live)
    if known is not None and (output is None or _begins_at(walk, live, known, output, kind)):
        return known
    if output is None:
        raise NotInActivationSpace(
            "the loss is of no known form, and where the model's output enters it is not known"
        )
    above = walk.below(0, stop=output[0])
    passes_by = any(walk.names[node] == ACCUMULATE and node in live for node in above)
    if passes_by or not _enters_only_at(walk, above, output):
        raise NotInActivationSpace(_GOES_AROUND)
    return Head("generic", -1, output)


def _begins_at(walk: Walk, live: set[int], head: Head, output: tuple[int, int], kind: str) -> bool:
    """Tells whether only linear operations lie between the model's output and a known loss.

    A log softmax inside the model is the loss's for the Hessian, but not for the GGN, which ends at the output.
    """
    if head.boundary == output:
        return True
    boundary = head.boundary[0]
    if output[0] not in walk.below(boundary):
        return kind == "hessian"
    above = walk.below(boundary, stop=output[0])
    return _enters_only_at(walk, above, output) and all(
        _is_linear(walk, node, _live(walk, node, live)) for node in above & live
    )


def _is_linear(walk: Walk, node: int, at: list[int]) -> bool:
    name = walk.names[node]
    return name != ACCUMULATE and kind_of(name, walk.nodes[node], at) == "linear"


def _known_head(walk: Walk, live: set[int]) -> Head | None:
    """Goes down from the loss through linear operations, to one log softmax or one elementwise loss."""
    tops: list[int] = []
    reached = {0}
    for node in walk.order:
        if node not in reached:
            continue
        name, at = walk.names[node], _live(walk, node, live)
        if name == LOG_SOFTMAX or (name in ELEMENTWISE_LOSSES and at == [0]):
            tops.append(node)
        elif name in LOSSES_OF_LOG_P or _is_linear(walk, node, at):
            reached.update(walk.inputs[node][position][0] for position in at)
        else:
            return None
    if len(tops) != 1:
        return None
    (top,) = tops
    kind = "softmax" if walk.names[top] == LOG_SOFTMAX else "diagonal"
    return Head(kind, top, walk.inputs[top][0])


def _enters_only_at(walk: Walk, above: set[int], output: tuple[int, int]) -> bool:
    """Tells whether the nodes ``above`` take nothing else from the output's node, such as the other half of a chunk."""
    taken = {edge for node in above for edge in walk.inputs[node] if edge[0] == output[0]}
    return taken <= {output}


def _bends(
    walk: Walk, nodes: set[int], linear_in: set[tuple[int, int]]
) -> tuple[dict[int, tuple[int, int]], str | None]:
    """Returns the smooth nodes, and the reason that the first coupled one gives against the Hessian in activation space."""
    smooth: dict[int, tuple[int, int]] = {}
    for node in sorted(nodes):
        name = walk.names[node]
        if name == ACCUMULATE:
            continue
        at = [p for p in _live(walk, node, nodes) if (node, p) not in linear_in]
        kind = kind_of(name, walk.nodes[node], at)
        if name.startswith(HOOK):
            return smooth, "a module with a full backward hook may change gradients"
        if kind == "coupled" and at:
            operation = name.removesuffix("Backward0")
            return smooth, f"{operation} is neither elementwise nor linear in pieces"
        if kind == "smooth":
            smooth[node] = walk.inputs[node][0]
    return smooth, None

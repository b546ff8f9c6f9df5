"""The ways to a model's trace as objects, and the choice of the cheapest that is right for a batch.

``why_not`` of a method returns the reason why it would be wrong for a batch; None where it is right, as far as can be told
before it runs. Where it is None, ``cost`` says what the method would take, and ``measure`` returns all parameters' parts, the
layers, and the total.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from metacurv import ops
from metacurv.estimators.activation.space import ActivationSpace
from metacurv.estimators.mlp.second_derivatives import bend_parts
from metacurv.estimators.mlp.space import ChainSpace
from metacurv.estimators.probes.finite_difference import FiniteDifference
from metacurv.estimators.probes.samples import GaussNewtonSamples, HessianSamples
from metacurv.estimators.problem.batches import Found, Summary, two_seeds
from metacurv.estimators.problem.errors import (
    NotTwiceDifferentiableError,
    refuse_reentrant_checkpoints,
    without_advice,
)
from metacurv.estimators.problem.parameters import Layers
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.split.control_variate import ControlVariate
from metacurv.estimators.statistics.stopping import Budget, Draw, sample

# So many columns are always well spent on a result without error.
_FEW_COLUMNS = 32
# Bound on the difference between samples at a step and at twice that step: in float32 smooth networks are below 0.005, those
# with kinks at 0.1 or above (benchmarks/kinks.py).
_KINKS = 0.02


class Cost(NamedTuple):
    """Says what a method takes: ``passes`` are compared, and ``text`` stands in ``why``.

    A pass is a backward pass to the layers. One of a sample counts twice, for the error that a sample leaves.
    """

    passes: int
    text: str


class Method(Protocol):
    """A way to the trace of a batch."""

    name: str

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Returns what speaks against the method; None where it is right."""

    def cost(self, batch: MeasuredBatch, budget: Budget) -> Cost:
        """Returns what the method takes."""

    def measure(self, batch: MeasuredBatch, layers: Layers, budget: Budget) -> Summary:
        """Measures."""


class Exact:
    """Every column of the loss's factor, and of smooth activations, pulled back once: no sampling error."""

    name = "exact"

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Names what the graph has against activation space, or against columns for its Hessian."""
        if batch.obstacle is None and batch.kind == "hessian" and batch.bent_by:
            return (
                "columns give the Hessian only where a network is linear in pieces, or a plain stack of linear layers and "
                f"elementwise functions under softmax cross-entropy; this one has {', '.join(batch.bent_by)} elsewhere"
            )
        return batch.obstacle

    def cost(self, batch: MeasuredBatch, budget: Budget) -> Cost:
        """Counts the columns."""
        of_loss, of_activations = batch.columns
        more = f" and {of_activations} for smooth activations" if of_activations else ""
        plural = "s" if of_loss != 1 else ""
        text = f"{of_loss} column{plural} of the loss's factor{more}, a backward pass each"
        return Cost(of_loss + of_activations, text)

    def measure(self, batch: MeasuredBatch, layers: Layers, budget: Budget) -> Summary:
        """Sums over all columns."""

        def columns() -> Summary:
            space = batch.space(for_columns=True)
            sums = layers.row_with_sums(exact_parts(space, batch.forward.loss, batch.kind))
            return Summary(sums, [0.0] * len(sums), 0, converged=True)

        return batch.quietly(columns, without_user_code=batch.is_chain(for_columns=True))


class Activation:
    """Random combinations of columns: one backward pass to the layers a sample."""

    name = "activation"

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Names what the graph has against activation space."""
        return batch.obstacle

    def cost(self, batch: MeasuredBatch, budget: Budget) -> Cost:
        """Counts the samples that are drawn at first."""
        return Cost(_passes_of(budget.first), "one backward pass to the layers a sample")

    def measure(self, batch: MeasuredBatch, layers: Layers, budget: Budget) -> Summary:
        """Draws until the budget is met."""

        def samples() -> Summary:
            space, key = batch.space(for_columns=False), ops.as_int64(batch.seed)
            # Rows by example tell about the error, and one sample has none.
            if budget.begin(space.apart) == 1:
                return sample(_as_rows(partial(space.draw, key)), layers, budget)
            return sample(partial(space.draw_rows, key), layers, budget, space.apart)

        return batch.quietly(samples, without_user_code=batch.is_chain(for_columns=False))


class Split:
    """Probes with a direction for each example, beside the Gauss-Newton matrix where that pays."""

    name = "split"

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Tells whether the layers and the output are known, and there is more than the GGN to measure."""
        if batch.kind == "ggn" and batch.unknown is None:
            return "it measures the Hessian only, beside its Gauss-Newton matrix"
        return batch.unknown

    def cost(self, batch: MeasuredBatch, budget: Budget) -> Cost:
        """Counts a probe as less than one of ``Hutchinson``: it forms no gradient of a weight."""
        text = "a double backward to the layers a probe, with a direction for each example"
        return Cost(3 * _passes_of(budget.first), text)

    def measure(self, batch: MeasuredBatch, layers: Layers, budget: Budget) -> Summary:
        """Draws until the budget is met."""
        refuse_reentrant_checkpoints(batch.node_names)

        def samples() -> Summary:
            products = batch.split_products()
            # Most of what activation space takes is the factor of the loss, and often nobody asks for it.
            space = cache(partial(batch.general_space, for_columns=False, kind="ggn"))
            of_probes, of_traces = (ops.as_int64(seed) for seed in two_seeds(batch.seed))

            def exact() -> float:
                columns = batch.general_space(for_columns=True, kind="ggn")
                return float(exact_parts(columns, batch.forward.loss, "ggn").sum())

            return ControlVariate(
                partial(products.sample, of_probes),
                lambda first, n: space().draw_rows(of_traces, first, n),
                exact,
                batch.columns[0],
                layers,
                budget,
                products.apart,
                may_vary=products.is_apart,
            ).measure()

        return batch.quietly(samples)


class Hutchinson:
    """Samples in parameter space."""

    name = "hutchinson"

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Tells whether the Gauss-Newton matrix has an output to end at."""
        if batch.kind == "ggn" and batch.forward.edge is None:
            return (
                "the Gauss-Newton matrix needs a model whose output is one tensor that the graph of the loss begins at; of "
                "another output, estimate_trace(..., output=lambda out: ...) picks the tensor for loss_fn"
            )
        return None

    def cost(self, batch: MeasuredBatch, budget: Budget) -> Cost:
        """Counts a product with the matrix as four passes."""
        serves = "loss" if batch.kind == "hessian" else "model"
        return Cost(4 * _passes_of(budget.first), f"serves any {serves}")

    def measure(self, batch: MeasuredBatch, layers: Layers, budget: Budget) -> Summary:
        """Draws until the budget is met."""
        refuse_reentrant_checkpoints(batch.node_names)
        of_kind = HessianSamples if batch.kind == "hessian" else GaussNewtonSamples

        def samples() -> Summary:
            with torch.enable_grad():
                drawn = of_kind(
                    batch.problem, batch.forward, seed=batch.seed, backend=batch.backend
                )
            return sample(_as_rows(drawn.samples), layers, budget)

        return batch.quietly(samples)


class FiniteDifferences:
    """Differences of gradients along random signs."""

    name = "finite_difference"

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Tells whether it is the Hessian that is asked for; ``kinks`` looks at what a graph does not show."""
        if batch.kind == "hessian":
            return None
        return f"it measures the Hessian only, not {batch.kind!r}"

    def kinks(self, batch: MeasuredBatch) -> str | None:
        """Returns what differences see of kinks, where it is more than of a smooth loss; it takes 16 gradients."""
        disagreement = self._differences(batch).disagreement()
        if disagreement <= _KINKS:
            return None
        return (
            "finite differences see kinks (ReLU, max pooling), so they would give no second derivative of the smooth pieces: "
            "measure kind='ggn', which is the same for networks that are linear in pieces (samples at steps h and 2h differ by "
            f"{disagreement:.0%})"
        )

    def cost(self, batch: MeasuredBatch, budget: Budget) -> Cost:
        """Counts more than ``Hutchinson``: differences are for what cannot be differentiated twice."""
        return Cost(8 * _passes_of(budget.first), "needs gradients only")

    def measure(self, batch: MeasuredBatch, layers: Layers, budget: Budget) -> Summary:
        """Draws until the budget is met, by forward passes of its own under the caller's autocast."""
        refuse_reentrant_checkpoints(batch.node_names)
        return sample(_as_rows(self._differences(batch).samples), layers, budget)

    @staticmethod
    def _differences(batch: MeasuredBatch) -> FiniteDifference:
        return FiniteDifference(batch.problem, seed=batch.seed, backend=batch.backend)


HUTCHINSON, FINITE_DIFFERENCES = Hutchinson(), FiniteDifferences()
TWICE: tuple[Method, ...] = (Split(), HUTCHINSON)  # these differentiate the whole loss twice
_ALL: tuple[Method, ...] = (Exact(), Activation(), *TWICE, FINITE_DIFFERENCES)
METHODS: dict[str, Method] = {method.name: method for method in _ALL}


def measure(name: str, batch: MeasuredBatch, layers: Layers, budget: Budget) -> Found:
    """Measures with the method of that name, or for "auto" with the cheapest that is right here.

    Raises:
        ValueError: the named method is not right for this model, or none is.
        NotTwiceDifferentiableError: only finite differences remain, and they see kinks.
    """
    if name == "auto":
        return _choose_and_measure(batch, layers, budget)
    method = METHODS[name]
    against = method.why_not(batch)
    if against is None and method is FINITE_DIFFERENCES:
        against = FINITE_DIFFERENCES.kinks(batch)
    if against is not None:
        raise ValueError(
            f"method={name!r} is not right for this model and kind={batch.kind!r}: {against}; "
            "use method='auto' for the cheapest that is"
        )
    summary = method.measure(batch, layers, budget)
    checked = _checked(batch) if method in TWICE else []
    return name, "; ".join(["asked for by name", *_noted(summary), *checked]), summary


def _choose_and_measure(batch: MeasuredBatch, layers: Layers, budget: Budget) -> Found:
    against = {name: method.why_not(batch) for name, method in METHODS.items()}
    costs = {n: METHODS[n].cost(batch, budget) for n, reason in against.items() if reason is None}
    if not costs:
        reasons = _why_none_before(HUTCHINSON, against, costs)
        message = "; ".join([f"{against[HUTCHINSON.name]}", *reasons])
        raise ValueError(f"kind={batch.kind!r} cannot be measured here: {message}")
    method = METHODS[min(costs, key=lambda name: costs[name].passes)]
    reasons = _why_none_before(method, against, costs)
    try:
        summary = method.measure(batch, layers, budget)
        if method in TWICE:
            reasons += _checked(batch)
    except NotTwiceDifferentiableError as error:
        if method not in TWICE or FINITE_DIFFERENCES.name not in costs:
            raise
        method, failure = FINITE_DIFFERENCES, without_advice(error)
        if (seen := method.kinks(batch)) is not None:
            message = f"{failure}; and {seen}"
            raise NotTwiceDifferentiableError(message) from error
        reasons.append(f"neither split nor hutchinson: {failure}")
        summary = method.measure(batch, layers, budget)
    chosen = f"{method.name}: {costs[method.name].text}"
    return method.name, "; ".join([chosen, *_noted(summary), *reasons]), summary


def _noted(summary: Summary) -> list[str]:
    return [summary.note] if summary.note else []


def _as_rows(draw: Callable[[int, int], Tensor]) -> Draw:
    """Makes samples [m, parts], in which examples are not told apart, rows [m, 1, parts]."""
    return lambda first, n: draw(first, n).unsqueeze(1)


def _why_none_before(
    chosen: Method, against: dict[str, str | None], costs: dict[str, Cost]
) -> list[str]:
    """Says why none of the methods before ``chosen`` was taken; a reason that several share is said once."""
    names_of: dict[str, list[str]] = {}
    reasons = []
    for name in itertools.takewhile(lambda name: name != chosen.name, METHODS):
        reason = against[name]
        if reason is None:
            reasons.append(f"{name} would take {costs[name].text}")
        else:
            names_of.setdefault(reason, []).append(name)
    for reason, names in names_of.items():
        nor = f"neither {' nor '.join(names)}" if len(names) > 1 else f"not {names[0]}"
        reasons.append(f"{nor}: {reason}")
    return reasons


def worth_columns(columns: int, n_samples: int) -> bool:
    """Tells whether the exact trace, from so many columns, is to be preferred to ``n_samples`` samples."""
    return columns <= _passes_of(n_samples)


def _passes_of(n_samples: int) -> int:
    return max(_FEW_COLUMNS, 2 * n_samples)


def _checked(batch: MeasuredBatch) -> list[str]:
    """Says which custom functions had to be checked, where there are some."""
    names = batch.custom_functions
    return [f"the backward passes of custom functions were checked: {names}"] if names else []


def exact_parts(space: ActivationSpace | ChainSpace, loss: Tensor, kind: str) -> Tensor:
    """Returns each parameter's exact trace, float64 [parameters], from as many columns at once as the space takes.

        tr J_theta' H_z J_theta = sum over columns c of sum_n <grad from u_nc, grad from w_nc>,   sum_c u_c w_c' = H_out

    ``loss`` is the loss that ``space`` was made from. The "hessian" of a chain with smooth activations has their share added.
    Source: Dangel, Harmeling, Hennig 2020, "Modular block-diagonal curvature approximations", section 3.
    """
    total = torch.zeros(len(space.parameters), dtype=torch.float64, device=space.device)
    for start in range(0, space.column_count, space.at_once):
        total += space.columns(start, min(start + space.at_once, space.column_count))
    if kind == "hessian" and isinstance(space, ChainSpace) and space.chain.has_smooth:
        total += bend_parts(space, loss)
    return total

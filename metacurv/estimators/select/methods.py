"""The four ways to a model's trace as objects: whether each is right for a batch, what it costs, and what it measures there."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import torch

from metacurv import ops
from metacurv.estimators.probes.finite_difference import FiniteDifference
from metacurv.estimators.probes.samples import GaussNewtonSamples, HessianSamples
from metacurv.estimators.problem.loss_checks import refuse_reentrant_checkpoints
from metacurv.estimators.select.exact import exact_parts
from metacurv.estimators.select.measured_batch import MeasuredBatch
from metacurv.estimators.statistics.stopping import Budget, Groups, Summary, sample

# Bound on the difference between samples at a step and at twice that step: in float32 smooth networks are below 0.005, those
# with kinks at 0.1 or above (benchmarks/kinks.py).
_KINKS = 0.02


class Method(ABC):
    """One way to the trace of a batch."""

    name: ClassVar[str]

    @abstractmethod
    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Returns the reason why it would be wrong here; None where it is right, as far as can be told before it runs."""

    def cost(self, batch: MeasuredBatch) -> int | None:
        """Returns the number of backward passes that it takes; None where it draws samples, as many as are asked for."""
        return None

    @abstractmethod
    def measure(self, batch: MeasuredBatch, groups: Groups, budget: Budget) -> Summary:
        """Returns all parameters' parts, the groups, and the total, of a batch for which ``why_not`` found nothing."""


class Exact(Method):
    """Every column of the loss's factor, and of smooth activations, pulled back once: no sampling error."""

    name = "exact"

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Names what the graph has against activation space, or against columns for its Hessian."""
        if batch.obstacle is None and batch.kind == "hessian" and batch.bent_by:
            return (
                "columns give the Hessian only where a network is linear in pieces, or a plain stack of linear layers and "
                f"elementwise functions under softmax cross-entropy, and {', '.join(batch.bent_by)} is not"
            )
        return batch.obstacle

    def cost(self, batch: MeasuredBatch) -> int:
        """Counts the columns."""
        return sum(batch.columns)

    def measure(self, batch: MeasuredBatch, groups: Groups, budget: Budget) -> Summary:
        """Sums over all columns."""

        def columns() -> Summary:
            space = batch.space(for_columns=True)
            sums = groups.row_with_sums(exact_parts(space, batch.forward.loss, batch.kind))
            return Summary(sums, [0.0] * len(sums), 0, converged=True)

        return batch.quietly(columns, without_user_code=batch.is_chain(self.name))


class Activation(Method):
    """Random combinations of columns: one backward pass to the layers a sample."""

    name = "activation"

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Names what the graph has against activation space."""
        return batch.obstacle

    def measure(self, batch: MeasuredBatch, groups: Groups, budget: Budget) -> Summary:
        """Draws until the budget is met."""

        def samples() -> Summary:
            space, key = batch.space(for_columns=False), ops.as_int64(batch.seed)
            return sample(lambda first, n: space.draw(key, first, n), groups, budget)

        return batch.quietly(samples, without_user_code=batch.is_chain(self.name))


class Hutchinson(Method):
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

    def measure(self, batch: MeasuredBatch, groups: Groups, budget: Budget) -> Summary:
        """Draws until the budget is met."""
        refuse_reentrant_checkpoints(set(batch.node_names()))
        of_kind = HessianSamples if batch.kind == "hessian" else GaussNewtonSamples

        def samples() -> Summary:
            with torch.enable_grad():
                drawn = of_kind(
                    batch.problem, batch.forward, seed=batch.seed, backend=batch.backend
                )
            return sample(drawn.samples, groups, budget)

        return batch.quietly(samples)


class FiniteDifferences(Method):
    """Differences of gradients along random signs."""

    name = "finite_difference"

    def why_not(self, batch: MeasuredBatch) -> str | None:
        """Tells whether it is the Hessian that is asked for; ``kinks`` looks at what a graph does not show."""
        if batch.kind == "hessian":
            return None
        return f"it measures the Hessian only, not {batch.kind!r}"

    def kinks(self, batch: MeasuredBatch) -> str | None:
        """Returns what differences see of kinks, where it is more than of a smooth loss; None where they may be taken.

        It takes 16 gradients.
        """
        disagreement = self._differences(batch).disagreement()
        if disagreement <= _KINKS:
            return None
        return (
            "finite differences see kinks (ReLU, max pooling), so they would give no second derivative of the smooth pieces: "
            "measure kind='ggn', which is the same for networks that are linear in pieces (samples at steps h and 2h differ by "
            f"{disagreement:.0%})"
        )

    def measure(self, batch: MeasuredBatch, groups: Groups, budget: Budget) -> Summary:
        """Draws until the budget is met, by forward passes of its own under the caller's autocast."""
        refuse_reentrant_checkpoints(set(batch.node_names()))
        return sample(self._differences(batch).samples, groups, budget)

    @staticmethod
    def _differences(batch: MeasuredBatch) -> FiniteDifference:
        return FiniteDifference(batch.problem, seed=batch.seed, backend=batch.backend)


EXACT, ACTIVATION, HUTCHINSON, FINITE_DIFFERENCES = (
    Exact(),
    Activation(),
    Hutchinson(),
    FiniteDifferences(),
)
METHODS: dict[str, Method] = {
    method.name: method for method in (EXACT, ACTIVATION, HUTCHINSON, FINITE_DIFFERENCES)
}

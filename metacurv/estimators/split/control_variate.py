"""The Hessian's trace from probes of the Hessian with those of the Gauss-Newton matrix as a control variate.

    tr H = E[ v' H v - c v' G v ] + c tr G

for every c. One double backward gives v' H v and v' G v of the same v, and activation space gives tr G with less noise than
v' G v has. For probe k, c comes from the other probes (the regression of one on the other, within each row), so that the mean over
probes has no bias. Where the remainder and tr G together would take more work than v' H v alone, c is 0, and the estimator is
Hutchinson's; the first probes decide.

Source: docs/concepts/estimators.md; Owen 2013, "Monte Carlo theory, methods and examples", section 8.9 (control variates).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from metacurv.estimators.problem.batches import Summary
from metacurv.estimators.problem.parameters import Layers
from metacurv.estimators.statistics.moments import RowMoments, samples_to_trust
from metacurv.estimators.statistics.stopping import Budget, Draw

# A sample of tr G in activation space takes this share of a probe's time (benchmarks/real_networks.py).
_COST = 0.4
_MOST_EACH = 8  # samples of tr G for each probe, at most

# Maps a probe to v_n' (H_n v), float64 [rows, parts], and v_n' G_n v_n, float64 [rows].
Probe = Callable[[int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Fit:
    """Holds what the probes say with coefficients c: the mean of h - c g, float64 [D], c [D], and a probe's deviation [D]."""

    mean: Tensor
    coefficients: Tensor
    deviation: Tensor
    is_trusted: bool


class ControlVariate:
    """Draws probes, and samples of tr G where they pay, until the budget is met.

    Args:
        probe: one probe's samples.
        gauss_newton: draws samples of tr G by row.
        layers: extends parts by layers and the total.
        budget: says when to stop, by the number of probes.
        examples: the number of examples that rows tell apart, 1 where they do not.
    """

    def __init__(
        self, probe: Probe, gauss_newton: Draw, layers: Layers, budget: Budget, examples: int
    ) -> None:
        self._probe, self._draw_gauss_newton = probe, gauss_newton
        self._layers, self._budget, self._examples = layers, budget, examples
        self._h: list[Tensor] = []  # [rows, D]
        self._g: list[Tensor] = []  # [rows]
        self._traces = RowMoments()  # of tr G alone
        # With one probe left out, a coefficient still has as many degrees of freedom as an error that is trusted.
        self._least = 1 + samples_to_trust(examples)

    def measure(self) -> Summary:
        """Returns the trace with its parts; ``note`` says what was decided."""
        budget = self._budget
        wanted = max(budget.begin(self._examples), 1)
        if budget.rtol is not None:
            wanted = min(budget.most, max(wanted, self._least))
        self._draw_probes(wanted)
        plain = self._fit(uses_g=False)
        note = f"no control variate: fewer than {self._least} probes, or a loss that is linear in the output"
        pays = False
        if len(self._h) >= self._least and any(bool(g.any()) for g in self._g):
            self._draw_traces(max(2, samples_to_trust(self._examples)))
            pays, note = self._pays(plain)
        while True:
            fit = self._fit(uses_g=True) if pays else self._fit(uses_g=False)
            if pays:
                self._draw_traces(self._traces_for(fit, len(self._h)))
            mean, errors = self._result(fit, pays=pays)
            count, value, error = len(self._h), float(mean[-1]), float(errors[-1])
            trusted = fit.is_trusted and (not pays or self._traces.is_trusted)
            wanted = budget.more(count, value, error, is_trusted=trusted)
            if wanted <= count:
                break
            self._draw_probes(wanted)
        is_met = budget.is_met(value, error, is_trusted=trusted)
        if pays:
            c = float(fit.coefficients[-1])
            note += f" (coefficient {c:.2f}, {self._traces.count} samples of tr G)"
        return Summary(mean.tolist(), errors.tolist(), count, is_met, note)

    def _draw_probes(self, wanted: int) -> None:
        for k in range(len(self._h), wanted):
            parts, g = self._probe(k)
            self._h.append(self._layers.with_sums(parts))
            self._g.append(g.cpu())

    def _draw_traces(self, wanted: int) -> None:
        first = self._traces.count
        if wanted > first:
            rows = self._draw_gauss_newton(first, wanted - first)
            self._traces.add(rows.sum(-1, keepdim=True).cpu())

    def _fit(self, *, uses_g: bool) -> Fit:
        """Fits the probes so far, with c from the other probes of each; or c = 0."""
        h, g = torch.stack(self._h), torch.stack(self._g)
        n, columns = len(h), h.shape[-1]
        each = torch.zeros(n, columns, dtype=h.dtype)
        c = torch.zeros(columns, dtype=h.dtype)
        off = g - g.mean(0)
        if uses_g:
            products = torch.einsum("kr,krd->kd", off, h - h.mean(0))
            squares = off.square().sum(1)
            c = products.sum(0) / squares.sum()
            # Without probe k, deviations are those from the others' mean: a sum of squares loses n / (n - 1) of k's.
            by = n / (n - 1)
            each = (products.sum(0) - by * products) / (squares.sum() - by * squares).unsqueeze(1)
        moments = RowMoments()
        moments.add(h - each.unsqueeze(1) * off.unsqueeze(2))
        trace = float(self._traces.mean[-1]) if uses_g else 0.0
        samples = h.sum(1) - each * (g.sum(1) - trace).unsqueeze(1)
        return Fit(samples.mean(0), c, moments.deviation, moments.is_trusted)

    def _result(self, fit: Fit, *, pays: bool) -> tuple[Tensor, Tensor]:
        """Returns means and standard errors, float64 [D]."""
        variance = fit.deviation.square() / len(self._h)
        mean = fit.mean
        if pays:
            mean = self._fit(uses_g=True).mean  # by all samples of tr G there are by now
            of_trace = self._traces.deviation[-1].square() / self._traces.count
            variance = variance + fit.coefficients.square() * of_trace
        return mean, variance.sqrt()

    def _work(self, fit: Fit) -> tuple[float, float]:
        """Returns the deviations of a probe and of a sample of tr G, as they enter the total's error."""
        of_trace = abs(float(fit.coefficients[-1])) * float(self._traces.deviation[-1])
        return float(fit.deviation[-1]), of_trace

    def _pays(self, plain: Fit) -> tuple[bool, str]:
        """Compares the work to an equal error with and without tr G, and says what it found."""
        fit = self._fit(uses_g=True)
        of_probe, of_trace = self._work(fit)
        work = (of_probe + math.sqrt(_COST) * of_trace) ** 2
        before = float(plain.deviation[-1]) ** 2
        share = work / before if before else math.inf
        pays = share < 1
        does = "takes" if pays else "would take"
        return pays, (
            f"by the first {len(self._h)} probes, the Gauss-Newton matrix as a control variate {does} "
            f"{share:.0%} of the work without it"
        )

    def _traces_for(self, fit: Fit, probes: int) -> int:
        """Returns how many samples of tr G go best with so many probes."""
        of_probe, of_trace = self._work(fit)
        each = of_trace / of_probe / math.sqrt(_COST) if of_probe else 1.0
        return math.ceil(probes * min(max(each, 0.0), _MOST_EACH)) if math.isfinite(each) else 0

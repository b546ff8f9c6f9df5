"""The Hessian's trace from probes of the Hessian with those of the Gauss-Newton matrix as a control variate.

    tr H = E[ v' H v - c v' G v ] + c tr G

for every c. One double backward gives v' H v and v' G v of the same v, and activation space gives tr G with less noise than
v' G v has. For probe k, c comes from the other probes (the regression of one on the other, within each row), so that the mean
over probes has no bias. Where the remainder and tr G together would take more work than v' H v alone, c is 0, and the estimator
is Hutchinson's; the first probes decide.

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
from metacurv.estimators.problem.progress import bar
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
        exact: computes tr G without error.
        columns: the number of backward passes to the layers that this takes.
        budget: says when to stop, by the number of probes.
        examples: the number of examples that rows tell apart, 1 where they do not.
    """

    def __init__(
        self,
        probe: Probe,
        gauss_newton: Draw,
        exact: Callable[[], float],
        columns: int,
        layers: Layers,
        budget: Budget,
        examples: int,
    ) -> None:
        self._probe, self._draw_gauss_newton = probe, gauss_newton
        self._exact, self._columns = exact, columns
        self._layers, self._budget, self._examples = layers, budget, examples
        self._h: list[Tensor] = []  # [rows, D]
        self._g: list[Tensor] = []  # [rows]
        # With one probe left out, a coefficient still has as many degrees of freedom as an error that is trusted.
        self._least = 1 + samples_to_trust(examples)

    def measure(self) -> Summary:
        """Returns the trace with its parts; ``note`` says what was decided."""
        with bar(self._budget.progress, "trace", "probe") as self._bar:
            return self._measure()

    def _measure(self) -> Summary:
        budget = self._budget
        wanted = budget.begin(self._examples)
        note = f"no control variate: fewer than {self._least} probes, or a loss that is linear in the output"
        trace: _Trace | None = None
        has_chosen = False
        while True:
            self._draw_probes(wanted)
            if not has_chosen and len(self._h) >= self._least and any(map(torch.any, self._g)):
                trace, note = self._choose()
                has_chosen = True
            fit = self._fit(None if trace is None else trace.value)
            if trace is not None:
                trace.go_on(self._share(fit, trace) * len(self._h))
                fit = self._fit(trace.value)
            variance = fit.deviation.square() / len(self._h)
            if trace is not None:
                variance = variance + (fit.coefficients * trace.error).square()
            errors, count = variance.sqrt(), len(self._h)
            value, error = float(fit.mean[-1]), float(errors[-1])
            is_trusted = fit.is_trusted and (trace is None or trace.is_trusted)
            wanted = budget.more(count, value, error, is_trusted=is_trusted)
            if wanted <= count:
                break
            if not has_chosen:
                wanted = min(max(wanted, self._least), budget.most)
        if trace is not None:
            note += f" (coefficient {float(fit.coefficients[-1]):.2f}, {trace})"
        is_met = budget.is_met(value, error, is_trusted=is_trusted)
        return Summary(fit.mean.tolist(), errors.tolist(), count, is_met, note)

    def _draw_probes(self, wanted: int) -> None:
        for k in range(len(self._h), wanted):
            parts, g = self._probe(k)
            self._h.append(self._layers.with_sums(parts))
            self._g.append(g.cpu())
            self._bar.update()

    def _fit(self, trace: float | None) -> Fit:
        """Fits the probes so far, with c from the other probes of each, given tr G; or c = 0 without it."""
        h, g = torch.stack(self._h), torch.stack(self._g)
        n, columns = len(h), h.shape[-1]
        each = torch.zeros(n, columns, dtype=h.dtype)
        c = torch.zeros(columns, dtype=h.dtype)
        off = g - g.mean(0)
        if trace is not None:
            products = torch.einsum("kr,krd->kd", off, h - h.mean(0))
            squares = off.square().sum(1)
            c = products.sum(0) / squares.sum()
            # Without probe k, deviations are those from the others' mean: a sum of squares loses n / (n - 1) of k's.
            by = n / (n - 1)
            each = (products.sum(0) - by * products) / (squares.sum() - by * squares).unsqueeze(1)
        moments = RowMoments()
        moments.add(h - each.unsqueeze(1) * off.unsqueeze(2))
        beyond = g.sum(1) - (0.0 if trace is None else trace)
        samples = h.sum(1) - each * beyond.unsqueeze(1)
        return Fit(samples.mean(0), c, moments.deviation, moments.is_trusted)

    def _choose(self) -> tuple[_Trace | None, str]:
        """Chooses the cheapest way to an equal error: without tr G, with samples of it, or with its exact value."""
        plain = self._fit(None)
        samples = _Sampled(self._draw_gauss_newton, max(2, samples_to_trust(self._examples)))
        fit = self._fit(samples.value)
        before, after = float(plain.deviation[-1]), float(fit.deviation[-1])
        n = len(self._h)
        if self._budget.rtol is not None:
            target = self._budget.rtol * abs(float(plain.mean[-1]))
            n = max(
                n, math.ceil(min((before / target) ** 2 if target else math.inf, self._budget.most))
            )
        of_trace = abs(float(fit.coefficients[-1])) * samples.deviation
        gain = (after / before) ** 2 if before else 1.0
        by_samples = (after + math.sqrt(_COST) * of_trace) ** 2 / before**2 if before else math.inf
        by_columns = gain + _COST * self._columns / n
        share = min(by_samples, by_columns)
        pays = share < 1
        does = "takes" if pays else "would take"
        note = (
            f"by the first {len(self._h)} probes, the Gauss-Newton matrix as a control variate {does} {share:.0%} of the work "
            "without it"
        )
        if not pays:
            return None, note
        return (_Exact(self._exact()) if by_columns < by_samples else samples), note

    def _share(self, fit: Fit, trace: _Trace) -> float:
        """Returns how many samples of tr G go best with each probe."""
        of_probe, of_trace = (
            float(fit.deviation[-1]),
            abs(float(fit.coefficients[-1])) * trace.deviation,
        )
        each = of_trace / of_probe / math.sqrt(_COST) if of_probe else 1.0
        return min(each, _MOST_EACH) if math.isfinite(each) else 0.0


class _Exact:
    """Holds tr G without error."""

    error, deviation, is_trusted = 0.0, 0.0, True

    def __init__(self, value: float) -> None:
        self.value = value

    def go_on(self, samples: float) -> None:
        pass

    def __str__(self) -> str:
        return "tr G exact"


class _Sampled:
    """Holds what samples say of tr G."""

    def __init__(self, draw: Draw, first: int) -> None:
        self._draw, self._moments = draw, RowMoments()
        self.go_on(first)

    def go_on(self, samples: float) -> None:
        count = self._moments.count
        if math.ceil(samples) > count:
            rows = self._draw(count, math.ceil(samples) - count)
            self._moments.add(rows.sum(-1, keepdim=True).cpu())

    @property
    def value(self) -> float:
        return float(self._moments.mean[-1])

    @property
    def deviation(self) -> float:
        return float(self._moments.deviation[-1])

    @property
    def error(self) -> float:
        return self.deviation / math.sqrt(self._moments.count)

    @property
    def is_trusted(self) -> bool:
        return self._moments.is_trusted

    def __str__(self) -> str:
        return f"{self._moments.count} samples of tr G"


_Trace = _Exact | _Sampled
